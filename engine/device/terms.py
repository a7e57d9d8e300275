"""The seconds of a batch as a sum of terms, compiled: for the model of a device, its fit, and policies that predict.

The formula is in the docstring of `engine.device.latency`, whose model has a field for each term.
"""

from typing import NamedTuple

import numpy as np

from engine.compiled.jit import inner
from engine.server.features import QUERY_TILE, Features


class Weights(NamedTuple):
    """How often a batch pays each term of a `LatencyModel` that is linear in its features.

    A term is a field of the model and an entry here, of the same name; the sum, the fit, profiles and their speeds
    follow from these. They are added in this order.
    """

    per_request: float
    per_chunk: float
    any_chunk: float
    per_pair: float
    per_context: float
    per_read: float
    per_uncached: float
    per_mixed: float


class Traits(NamedTuple):
    """What of a device its terms are counted by."""

    cached: float  # KV tokens that caches hold
    query_tile: float  # queries of a prompt chunk that attention takes together


@inner
def weights(f: Features, traits: Traits) -> Weights:
    """Weights of the terms in a batch.

    Args:
        f: its features, or a FEATURES record.
        traits: those of the device, or a record that has them among others.
    """
    chunks = f.requests - f.decodes
    return Weights(
        per_request=f.requests,
        per_chunk=chunks,
        any_chunk=min(1.0, chunks),
        per_pair=f.prefill_pairs,
        per_context=f.decode_context,
        per_read=f.prefill_reads if traits.query_tile <= QUERY_TILE else f.wide_prefill_reads,
        per_uncached=max(0.0, f.decode_context - traits.cached),
        per_mixed=f.decode_context * min(1.0, chunks),
    )


@inner
def interpolate(table: np.ndarray, rows: int, tokens: float) -> float:
    """Seconds at this many tokens: linear between the first `rows` of the table, beyond its ends as in the last part.

    Before the first row a token never costs less than there; beyond the last one, where the last part falls, it costs
    as much as there: noise at the end of a table must not make large batches free.
    """
    low, high = 0, rows - 1
    while high - low > 1:
        middle = (low + high) // 2
        if table[middle, 0] <= tokens:
            low = middle
        else:
            high = middle
    slope = (table[high, 1] - table[low, 1]) / (table[high, 0] - table[low, 0])
    if tokens > table[high, 0] and slope <= 0.0:
        return float(table[high, 1] / table[high, 0] * tokens)
    seconds = table[low, 1] + slope * (tokens - table[low, 0])
    if tokens < table[low, 0]:
        seconds = max(seconds, table[low, 1] / table[low, 0] * tokens)
    return float(seconds)


@inner
def linear_seconds(c: np.record, table: np.ndarray, rows: int, tokens: float) -> float:
    """Seconds of the linear layers.

    Args:
        c: a record with the fields tile, floor and per_token.
        table: float64[>= rows, 2], tokens and seconds.
        rows: of the table; 0: floor and per_token count.
        tokens: of the batch.
    """
    if c.tile > 1.0:
        tokens = np.ceil(tokens / c.tile) * c.tile
    if rows > 0:
        return interpolate(table, rows, tokens)
    return max(c.floor, c.per_token * tokens)


@inner
def batch_seconds(c: np.record, table: np.ndarray, rows: int, f: Features) -> float:
    """Seconds of a batch: all terms, and no less than the host takes to launch it where no CUDA graph covers it.

    Args:
        c: a record with the numbers of a `engine.device.latency.LatencyModel`.
        table: float64[>= rows, 2], tokens and seconds of the linear layers.
        rows: of the table.
        f: features of the batch, or a FEATURES record.
    """
    w = weights(f, c)
    t = c.overhead + c.per_request * w.per_request + linear_seconds(c, table, rows, f.tokens)
    t += c.per_chunk * w.per_chunk
    t += c.any_chunk * w.any_chunk
    t += c.per_pair * w.per_pair
    t += c.per_context * w.per_context
    t += c.per_read * w.per_read
    t += c.per_uncached * w.per_uncached
    t += c.per_mixed * w.per_mixed
    if f.tokens > c.graph_tokens:
        t = max(t, c.eager_floor)
    return float(t)
