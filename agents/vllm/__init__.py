"""Our policies inside a vLLM server, and what came of them there beside what a simulation predicts."""
