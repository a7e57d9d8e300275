"""What a token costs on a replica, as a router reckons with it: two prices, from the latency model of its device."""

from typing import NamedTuple

from engine.config import EngineConfig
from engine.device.latency import LatencyModel, iteration_seconds
from engine.server.features import EMPTY, Features, add, new_features, store

CHUNK = 512
"""Tokens of the prompt chunk whose cost is shared among its tokens."""
DECODES, CONTEXT = 64, 1024
"""Decodes of the batch whose cost is shared among them, at most as many as there are seats, and KV tokens of each."""


class Prices(NamedTuple):
    """Seconds per token."""

    prefill_s: float  # of a prompt, in a chunk of its own
    decode_s: float  # of an output, in a batch of decodes


def prices_of(model: LatencyModel, config: EngineConfig) -> Prices:
    """The prices of a device: of a prompt token in a full chunk, of an output token in a full batch."""
    decodes = min(DECODES, config.max_num_seqs)
    batch = EMPTY
    for _ in range(decodes):
        batch = add(batch, CONTEXT, 1, True)
    return Prices(
        seconds_of_batch(model, config, add(EMPTY, 0, CHUNK, False)) / CHUNK,
        seconds_of_batch(model, config, batch) / decodes,
    )


def seconds_of_batch(model: LatencyModel, config: EngineConfig, batch: Features) -> float:
    """Seconds of an iteration with this batch."""
    features = new_features()
    store(batch, 0.0, features)
    return float(iteration_seconds(model.compiled(config), features))
