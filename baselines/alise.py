"""ALISE: priority levels by predicted execution time, aging, and KV offloaded to the host in 8 bits."""

from dataclasses import dataclass
from typing import Any, ClassVar

from baselines.families.priority import (
    KEY,
    LISTED,
    NUM_WATCHED,
    PRIORITY_REQUEST_MEMORY,
    PRIORITY_ROW_MEMORY,
    SINCE,
    TIMED,
    TIMER,
    fill_by_priority,
    list_changed,
    longest_wait,
    rekey,
    settle,
)
from baselines.grids import TOKEN_BUDGETS
from engine.compiled.jit import inner
from engine.server.policy import HotKernel, Kernel, Policy, Space, check_parameters, require
from engine.server.state import Memory, Plan, View

TOKEN_BUDGET, BATCH_CAP, LEVELS, FIRST_LEVEL, FACTOR, AGE, PROMPT_TOKEN, PER_CONTEXT, DECODE = range(9)

ESTIMATE, AGED = range(PRIORITY_REQUEST_MEMORY, PRIORITY_REQUEST_MEMORY + 2)
"""Columns: expected output tokens, levels won by waiting."""
NUM_ESTIMATED = PRIORITY_ROW_MEMORY


@inner
def execution_seconds(p: Any, r: Any, output: float) -> float:
    """Predicted time that is left to request `r` if it has `output` tokens: prompt s T0, decodes n (alpha s + beta)."""
    decodes = max(0.0, output - r.generated)
    return float((r.prompt - r.prefilled) * p[PROMPT_TOKEN] + decodes * (p[PER_CONTEXT] * r.prompt + p[DECODE]))


@inner
def _level(p: Any, seconds: float) -> float:
    """Level 0 is below the first limit; each further limit is a factor higher; the last level is open."""
    level, limit = 0.0, p[FIRST_LEVEL]
    while level < p[LEVELS] - 1.0 and seconds >= limit:
        level += 1.0
        limit *= p[FACTOR]
    return level


@inner
def _estimate_arrivals(view: View, memory: Memory) -> None:
    for i in range(int(memory.row[NUM_ESTIMATED]), view.row[0].next_arrival):
        memory.request[i, ESTIMATE] = max(1.0, view.request[i].prediction)
        memory.request[i, SINCE] = view.request[i].arrival
    memory.row[NUM_ESTIMATED] = view.row[0].next_arrival


@inner
def _set_level(view: View, memory: Memory, i: int) -> None:
    """Level of request `i` from what is left of its estimate and from waiting."""
    row, p, cells, r = view.row[0], memory.params, memory.request, view.request[i]
    while r.generated >= cells[i, ESTIMATE]:
        cells[i, ESTIMATE] *= 2.0
    if r.last_run == row.iterations - 1:
        cells[i, SINCE] = row.now
    elif p[AGE] > 0.0 and row.now - cells[i, SINCE] >= p[AGE]:
        cells[i, SINCE] = row.now
        cells[i, AGED] += 1.0
    cells[i, KEY] = max(0.0, _level(p, execution_seconds(p, r, cells[i, ESTIMATE])) - cells[i, AGED])
    # Nobody gets above the top level, whatever the estimate will be: further waiting changes nothing.
    cells[i, TIMED] = 1.0 if p[AGE] > 0.0 and cells[i, AGED] < p[LEVELS] - 1.0 else 0.0


@inner
def _set_levels(view: View, memory: Memory, n: int) -> None:
    """Levels of the list of `n` and of those in the heap who have waited long."""
    row, p, cells, m = view.row[0], memory.params, memory.request, memory.row
    for k in range(n):
        _set_level(view, memory, int(cells[k, LISTED]))
    if row.iterations == 0:  # before the first iteration nobody's wait counts
        for k in range(int(m[NUM_WATCHED])):
            cells[int(cells[k, TIMER]), SINCE] = row.now
    i = longest_wait(memory)
    while i >= 0 and row.now - cells[i, SINCE] >= p[AGE]:
        _set_level(view, memory, i)
        rekey(memory, i)
        i = longest_wait(memory)


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    n = list_changed(view, memory)
    _estimate_arrivals(view, memory)
    _set_levels(view, memory, n)
    n = settle(view, memory, n)
    fill_by_priority(view, memory, plan, n, int(memory.params[TOKEN_BUDGET]), int(memory.params[BATCH_CAP]), True)


@dataclass(frozen=True)
class ALISE(Policy):
    """Requests with little predicted time left run first: levels of time, first come first served within one.

    Who waits `age_s` without service goes one level up and stays there; who outlives its estimate has it doubled. Where
    the server swaps, the requests with the most predicted work ahead of them, which are the last of the list, are
    offloaded in 8-bit numbers. The published description does not say how many levels there are, how aging works or
    when KV comes back: those are ours. Chunked prefill is ours, too.
    """

    token_budget: int = 512
    """Tokens per iteration."""
    batch_cap: int = 128
    """Requests per iteration."""
    levels: int = 4
    """Number of levels."""
    first_level_s: float = 2.0
    """Requests with less predicted time left than this (s) are at the top level."""
    factor: float = 2.0
    """Each level's limit is this many times that of the level above."""
    age_s: float = 3.0
    """A request without service for this long (s) goes one level up (0: never)."""
    prompt_token_s: float = 8.36e-5
    """Predicted seconds per prompt token (the shipped profile's `per_token`)."""
    context_token_s: float = 1.37e-7
    """Predicted seconds of a decode per prompt token (the shipped profile's `per_context`)."""
    decode_s: float = 0.025
    """Predicted seconds of a decode (the shipped profile's iteration without prompts: overhead and floor)."""

    name: ClassVar[str] = "alise"
    paper: ClassVar[str] = "ALISE, arXiv 2410.23537"
    knows: ClassVar[str] = "output length, once"
    prediction: ClassVar[str] = "retrieval"
    eviction: ClassVar[str] = "most predicted work ahead; 8-bit swap if the server swaps, else recompute under pressure"
    evidence: ClassVar[str] = "reconstructed from the abstract and reviews; levels, aging and chunks are ours"
    request_memory: ClassVar[int] = PRIORITY_REQUEST_MEMORY + 2
    row_memory: ClassVar[int] = PRIORITY_ROW_MEMORY + 1
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {
        "token_budget": TOKEN_BUDGETS,
        "first_level_s": (0.5, 2.0, 8.0),
        "age_s": (1.0, 3.0, 10.0),
    }

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self)
        require(self.token_budget >= 1, self, "token_budget", "tokens >= 1")
        require(self.batch_cap >= 1, self, "batch_cap", "requests >= 1")
        require(1 <= self.levels <= 64, self, "levels", "1 to 64 levels")
        require(0.0 < self.first_level_s < float("inf"), self, "first_level_s", "seconds > 0")
        require(1.0 <= self.factor < float("inf"), self, "factor", "a factor >= 1")
        for name in ("age_s", "prompt_token_s", "context_token_s", "decode_s"):
            require(0.0 <= getattr(self, name) < float("inf"), self, name, "seconds >= 0")
