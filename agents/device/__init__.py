"""Real executors: measured, fitted, compared with their surrogates."""
