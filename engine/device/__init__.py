"""How long an iteration takes: latency profiles, their fit and bounds, and a real device."""
