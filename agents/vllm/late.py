"""How late an engine sees the tokens of a batch: it launches the next one before it looks.

vLLM's core schedules a batch while the one before it runs, launches it, and only then waits for the result of that one.
A batch that a CUDA graph covers is launched in a few milliseconds, any other keeps the host busy for tens of them,
however few tokens are in it. So a few decodes before a long prompt seem to last as long as its launch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.vllm.results import Measured

GRAPH_TOKENS = 512
"""Tokens of the largest batch that a CUDA graph covers, by default."""
_FEW = 64
"""Decodes that are done before a launch is."""
_LEAST = 20
"""Launches from which a median says something."""


class Launch(NamedTuple):
    """How long batches are launched that no CUDA graph covers."""

    seconds: float
    """The median."""
    launches: int
    """Of how many."""


def launch_of(cells: Sequence[Measured]) -> Launch | None:
    """From when such batches were scheduled until the few decodes before them were seen; None: the logs do not say."""
    waits = np.concatenate([np.zeros(0), *(_waits(cell.steps) for cell in cells if len(cell.steps) > 2)])
    return Launch(float(np.median(waits)), len(waits)) if len(waits) >= _LEAST else None


def _waits(log: Sequence[str]) -> np.ndarray:
    head, *lines = log
    rows = np.array([[float(cell) for cell in line.split(",")] for line in lines])
    columns = dict(zip(head.split(","), rows.T, strict=True))
    start, seconds, prompt, decodes = (columns[name] for name in ("start", "seconds", "prompt_tokens", "decodes"))
    end = np.zeros(len(start))
    for k in range(len(start)):
        end[k] = max(start[k], end[k - 1] if k else 0.0) + seconds[k]
    is_long = (prompt + decodes)[1:] > GRAPH_TOKENS
    chosen = is_long & (prompt[:-1] == 0.0) & (decodes[:-1] < _FEW) & (end[:-1] > start[1:])
    found: np.ndarray = (end[:-1] - start[1:])[chosen]
    return found
