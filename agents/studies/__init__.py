"""Fixed experiments: the paper's table, RAD on tiles, and how fast everything is."""
