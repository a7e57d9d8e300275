"""How late an engine sees the tokens of a batch, and its clients theirs, by what was logged.

vLLM's core schedules a batch while the one before it runs, launches it, and only then waits for the result of that one.
A batch that a CUDA graph covers is launched in a few milliseconds, any other keeps the host busy for tens of them,
however few tokens are in it. So a few decodes before a long prompt seem to last as long as its launch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.vllm.results import Measured
from engine.device.latency import USUAL_GRAPH

GRAPH_TOKENS = int(USUAL_GRAPH)
"""Tokens of the largest batch that a CUDA graph covers, by default."""
_FEW = 64
"""Decodes that are done before a launch is."""
_LEAST = 20
"""Values from which a quantile says something."""
_BUSY_S = 0.01
"""The host takes less than that between a result and the next batch, unless it waits for requests."""


class Late(NamedTuple):
    """What comes between a device and its clients."""

    launch_s: float
    """Launch of a batch that no CUDA graph covers, with what the host does before; nan: unknown."""
    launches: int
    """Of how many that is the median."""
    front_s: float
    """From when a request is due until it can be scheduled, and from a token until the client has it; nan: unknown."""


class _Log:
    """The step log of a cell, by columns."""

    def __init__(self, log: Sequence[str]) -> None:
        head, *lines = log
        rows = np.array([[float(cell) for cell in line.split(",")] for line in lines])
        columns = dict(zip(head.split(","), rows.T, strict=True))
        self.start, self.prompt, self.decodes = (columns[name] for name in ("start", "prompt_tokens", "decodes"))
        self.is_whole = (columns["prompts"] == 1.0) & (columns["prompt_context"] == 0.0)
        """Whether it has a whole prompt, and no other one."""
        self.end = np.zeros(len(self.start))
        for k in range(len(self.start)):
            self.end[k] = max(self.start[k], self.end[k - 1] if k else 0.0) + columns["seconds"][k]

    def launches(self) -> np.ndarray:
        """From when long batches were scheduled until the few decodes before them were seen, s."""
        is_long = (self.prompt + self.decodes)[1:] > GRAPH_TOKENS
        chosen = is_long & (self.prompt[:-1] == 0.0) & (self.decodes[:-1] < _FEW) & (self.end[:-1] > self.start[1:])
        found: np.ndarray = (self.end[:-1] - self.start[1:])[chosen]
        return found

    def between(self) -> np.ndarray:
        """From a result until the batch behind the next one was scheduled, s."""
        found = self.start[2:] - self.end[:-2]
        chosen: np.ndarray = found[(found > 0.0) & (found < _BUSY_S)]
        return chosen


def _fronts(cell: Measured, log: _Log) -> np.ndarray:
    """TTFT of each request less the time of its batch, s, where it is known which was its own and had it alone."""
    seconds: dict[int, list[float]] = {}
    for k in np.flatnonzero(log.is_whole).tolist():
        seconds.setdefault(int(log.prompt[k]), []).append(float(log.end[k] - log.start[k]))
    prompts = cell.plan.requests(cell.cell).prompt
    lengths, first, count = np.unique(prompts, return_index=True, return_counts=True)
    sought = zip(lengths[count == 1].tolist(), first[count == 1].tolist(), strict=True)
    return np.array([cell.served.ttft[i] - seconds[n][0] for n, i in sought if len(seconds.get(n, ())) == 1])


def late_of(cells: Sequence[Measured]) -> Late:
    """How late this engine is."""
    logs = [(cell, _Log(cell.steps)) for cell in cells if len(cell.steps) > _LEAST]
    launches, between, fronts = (
        np.concatenate([np.zeros(0), *some])
        for some in (
            [log.launches() for _, log in logs],
            [log.between() for _, log in logs],
            [_fronts(cell, log) for cell, log in logs],
        )
    )
    # the least of the fronts waited for nothing else; a few are of other batches than they seem
    return Late(_quantile(launches, 0.5) + _quantile(between, 0.5), len(launches), _quantile(fronts, 0.05))


def _quantile(values: np.ndarray, share: float) -> float:
    """Of enough values; nan: they are too few."""
    return float(np.quantile(values, share)) if len(values) >= _LEAST else float("nan")
