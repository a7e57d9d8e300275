"""Training with PPO: learner, rollouts, checkpoints, what is seen of it."""
