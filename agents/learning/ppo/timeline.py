"""A batch timeline as a figure: what each iteration was made of, who waited, how full the KV memory was."""

from typing import TYPE_CHECKING, Any

import numpy as np

from engine.runs.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PREFILL, _DECODE, _LINE = "#c8553d", "#2a6f97", "#333333"


def _tokens(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """(prefill tokens, decode tokens) of each iteration."""
    assert record.steps is not None
    prefill = [int(batch[batch[:, 2] == 1, 1].sum()) for batch in record.steps.batches]
    decode = [int((batch[:, 2] == 0).sum()) for batch in record.steps.batches]
    return np.array(prefill), np.array(decode)


def timeline(record: Record, title: str) -> "Figure":
    """Draw the iterations of a record that `simulate` made with ``log_steps=True``.

    Raises:
        ValueError: the record has no steps.
    """
    from matplotlib.figure import Figure

    if record.steps is None or len(record.steps.start_s) == 0:
        raise ValueError("timeline: expected a record with steps (simulate(..., log_steps=True))")
    steps = record.steps
    prefill, decode = _tokens(record)
    figure = Figure(figsize=(10, 6), layout="constrained")
    upper, middle, lower = figure.subplots(3, 1, sharex=True)
    bars: dict[str, Any] = {"width": steps.duration_s, "align": "edge", "linewidth": 0}
    upper.bar(steps.start_s, decode, color=_DECODE, label="decode", **bars)
    upper.bar(steps.start_s, prefill, bottom=decode, color=_PREFILL, label="prefill", **bars)
    upper.set_ylabel("tokens in the batch")
    upper.set_title(title)
    upper.legend(loc="upper right", ncols=2, frameon=False)
    middle.step(steps.start_s, steps.running, where="post", color=_DECODE, label="holding KV")
    middle.step(steps.start_s, steps.waiting, where="post", color=_PREFILL, label="waiting")
    middle.set_ylabel("requests")
    middle.legend(loc="upper right", ncols=2, frameon=False)
    lower.step(steps.start_s, 1000.0 * steps.duration_s, where="post", color=_LINE)
    lower.set_ylabel("iteration, ms")
    lower.set_xlabel("time, s")
    return figure
