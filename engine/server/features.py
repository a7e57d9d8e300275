"""Features of a batch: what the seconds of an iteration depend on, and the one function that adds an item to them.

A batch in the making is a `Features`, which compiled loops keep in registers; one that `begin` has taken is a FEATURES
record. All are float64, which holds counts exactly up to 2**53: a batch of a model with fractions of requests
(`engine.device.fluid`) has the same features as one that is served.
"""

from typing import NamedTuple

import numpy as np

from engine.compiled.jit import inner

QUERY_TILE = 128
"""Queries of a prompt chunk that attention kernels take together: each tile of them reads the KV anew."""
WIDE_QUERY_TILE = 256
"""The same of kernels that take more."""


class Features(NamedTuple):
    """What the latency of an iteration depends on."""

    tokens: float = 0.0  # all tokens through the linear layers
    requests: float = 0.0  # items in the batch
    decodes: float = 0.0  # of them
    prefill_pairs: float = 0.0  # sum over chunks of n (context + (n + 1) / 2): attention of prefill
    prefill_reads: float = 0.0  # sum over chunks of KV tokens (context + n) x tiles of QUERY_TILE queries
    wide_prefill_reads: float = 0.0  # the same with tiles of WIDE_QUERY_TILE
    decode_context: float = 0.0  # sum over decodes of KV tokens read


FEATURES = np.dtype([*((name, "f8") for name in Features._fields), ("swapped", "f8")], align=True)
"""These, and half KV blocks moved between device and host since the previous iteration."""
EMPTY = Features()
"""Those of a batch without items."""


def new_features() -> np.ndarray:
    """The features of an empty batch, FEATURES[1]."""
    return np.zeros(1, FEATURES).view(np.recarray)


@inner
def add(f: Features, done: float, n: float, decode: bool) -> Features:
    """The features of a batch with one more item.

    Args:
        f: those without it.
        done: KV tokens of the request before this batch.
        n: tokens that it gets in it; 1 for a decode.
        decode: whether it is one, or a prompt chunk.
    """
    return Features(
        tokens=f.tokens + n,
        requests=f.requests + 1.0,
        decodes=f.decodes + (1.0 if decode else 0.0),
        prefill_pairs=f.prefill_pairs + (0.0 if decode else n * (done + (n + 1) / 2)),
        prefill_reads=f.prefill_reads + (0.0 if decode else (done + n) * np.ceil(n / QUERY_TILE)),
        wide_prefill_reads=f.wide_prefill_reads + (0.0 if decode else (done + n) * np.ceil(n / WIDE_QUERY_TILE)),
        decode_context=f.decode_context + (done + n if decode else 0.0),
    )


def contents(f: Features) -> tuple[int, int, int, int, int]:
    """What a batch consists of, as logs of servers have it.

    Returns:
        Prompt tokens, decodes, KV tokens that these read, chunks (1 if there is none), KV tokens before the chunks, as
        if these were of one length.
    """
    chunks, tokens = int(f.requests - f.decodes), int(f.tokens - f.decodes)
    before = max(0, round(f.prefill_pairs / tokens - (tokens / chunks + 1) / 2)) * chunks if tokens else 0
    return tokens, int(f.decodes), int(f.decode_context), max(1, chunks), before


@inner
def store(f: Features, swapped: float, features: np.ndarray) -> None:
    """Write the features of a batch, and the half KV blocks moved before it, into FEATURES[1]."""
    cells = features.view(np.float64)
    for k in range(len(f)):
        cells[k] = f[k]
    features[0].swapped = swapped
