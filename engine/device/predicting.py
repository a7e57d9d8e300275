"""A device as the kernels of policies know it: the whole profile in float64 cells, and what can be asked of it.

Policies that build batches of a predicted duration have it among their parameters (a record of DEVICE), so that they
predict with every term that the model has, its table included. All functions take the features of a batch in the
making (`engine.server.features.Features`) and return seconds without what a config charges.
"""

from typing import Any

import numpy as np

from engine.compiled.jit import inner
from engine.device.latency import NUMBERS, LatencyModel
from engine.device.terms import batch_seconds, linear_seconds
from engine.errors import InputError
from engine.server.features import EMPTY, Features, add

MOST_ROWS = 96
"""Rows of a table that policies know; of a longer one as many, evenly chosen."""

DEVICE = np.dtype(
    [*((name, "f8") for name in NUMBERS), ("rows", "f8"), ("table", "f8", (MOST_ROWS, 2))],
    align=True,
)
"""The numbers of a `LatencyModel` (s, tokens), and its table."""

BEFORE: dict[str, float] = dict.fromkeys((*NUMBERS, "rows", "table"), 0.0) | {"tile": 1.0, "query_tile": 128.0}
"""Numbers of a device of which fewer were known."""


def device_of(model: LatencyModel) -> dict[str, Any]:
    """A model by the names of DEVICE."""
    table, rows = np.zeros((MOST_ROWS, 2)), min(len(model.table), MOST_ROWS)
    if rows:
        kept = np.unique(np.linspace(0, len(model.table) - 1, rows).round().astype(np.int64))
        table[: len(kept)], rows = np.array(model.table)[kept], len(kept)
    return {**{name: float(getattr(model, name)) for name in NUMBERS}, "rows": float(rows), "table": table.tolist()}


def device_cells(model: LatencyModel) -> np.ndarray:
    """A model as the float64 cells of DEVICE."""
    named = device_of(model)
    return np.concatenate([np.ravel(named[name]) for name in DEVICE.names or ()])


def check_device(device: np.void) -> None:
    """Check a record of DEVICE that comes from a file.

    Raises:
        InputError: no record of a device on which a batch takes time, or a table that does not rise.
    """
    rows = float(device["rows"])
    if not (rows == 0.0 or (rows.is_integer() and 2.0 <= rows <= MOST_ROWS)):
        raise InputError(f"codec: profile: expected 0 or 2 to {MOST_ROWS} rows of a table, got {rows:g}")
    table = device["table"][: int(rows)]
    if rows and not ((np.diff(table[:, 0]) > 0.0).all() and (table[:, 1] > 0.0).all()):
        raise InputError("codec: profile: expected a table of rising tokens and seconds > 0")
    if not rows and device["overhead"] + device["floor"] + device["per_token"] <= 0.0:
        raise InputError("codec: profile: expected a device on which a batch takes time")


@inner
def predicted(device: np.record, f: Features) -> float:
    """Seconds of a batch."""
    return batch_seconds(device, device.table, int(device.rows), f)


@inner
def linear(device: np.record, tokens: float) -> float:
    """Seconds of the linear layers for so many tokens."""
    return linear_seconds(device, device.table, int(device.rows), tokens)


@inner
def largest(device: np.record, f: Features, done: float, most: int, limit_s: float) -> int:
    """The longest chunk with which a batch stays within a duration.

    Args:
        device: the record.
        f: features of the batch without the chunk.
        done: KV tokens of its request before.
        most: tokens that it may have.
        limit_s: seconds that the batch may take.

    Returns:
        Tokens, 0: none fits. Where seconds fall somewhere as tokens rise it is a length that fits, if not the longest.
    """
    if most <= 0:
        return 0
    high_s = predicted(device, add(f, done, float(most), False))
    if high_s <= limit_s:
        return most
    low, low_s = 1, predicted(device, add(f, done, 1.0, False))
    if low_s > limit_s:
        return 0
    high, halve = most, False
    while high - low > 1:
        # By turns the place where a straight line between the ends meets the limit, and the middle.
        at = (low + high) // 2
        if not halve and high_s > low_s:
            at = min(max(low + int((high - low) * (limit_s - low_s) / (high_s - low_s)), low + 1), high - 1)
        seconds = predicted(device, add(f, done, float(at), False))
        if seconds <= limit_s:
            low, low_s = at, seconds
        else:
            high, high_s = at, seconds
        halve = not halve
    return low


@inner
def gain_apart(device: np.record, decodes: Features, chunk: float) -> float:
    """Share of its seconds that a batch of these decodes and a chunk of so many tokens loses against two apart."""
    together = predicted(device, add(decodes, 0.0, chunk, False))
    apart = predicted(device, decodes) + predicted(device, add(EMPTY, 0.0, chunk, False))
    return 1.0 - apart / together
