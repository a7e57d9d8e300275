"""Batches on a real model. The only part of the engine that knows torch and transformers."""
