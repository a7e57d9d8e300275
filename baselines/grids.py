"""Values over which several baselines are tuned (`Policy.space`)."""

TOKEN_BUDGETS = (256, 384, 512, 768, 1024, 1536, 2048)
"""Tokens of an iteration."""
BATCH_CAPS = (16, 32, 48, 64, 96, 128)
"""Requests that run at the same time."""
