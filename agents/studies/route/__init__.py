"""Routers head to head on a fleet of replicas: what it consists of, and how it is run."""
