"""One LLM server as arrays: its state, its KV blocks, its physics, and what a policy may do."""
