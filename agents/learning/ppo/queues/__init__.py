"""PPO for queues: rows that never end, on common arrivals, with a critic that sees what the simulator knows."""
