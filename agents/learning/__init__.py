"""Training with PPO, and what comes out of it: a policy that the engine runs like any other."""
