"""Trained policies: the folder they are kept in, and the policy that the engine runs."""
