"""One LLM server as arrays: requests, limits, physics, metrics."""

from engine._cache import use_source_keyed_cache

use_source_keyed_cache()
