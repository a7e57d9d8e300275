"""PPO of a router: one scoring network for all replicas, trained in front of several fleets at once."""
