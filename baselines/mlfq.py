"""MLFQ: a multi-level feedback queue, which knows nothing of output lengths and favours who has had little service."""

from dataclasses import dataclass
from typing import ClassVar

from baselines._priority import (
    KEY,
    LISTED,
    PRIORITY_REQUEST_MEMORY,
    PRIORITY_ROW_MEMORY,
    fill_by_priority,
    list_present,
    sort_listed,
)
from engine._jit import inner
from engine.policy import HotKernel, Kernel, Policy, require
from engine.state import Memory, Plan, View

TOKEN_BUDGET, QUANTUM, FACTOR, LEVELS, PROMOTE_AFTER = 0, 1, 2, 3, 4
USED, SINCE = PRIORITY_REQUEST_MEMORY, PRIORITY_REQUEST_MEMORY + 1
SEEN_ITERATIONS = PRIORITY_ROW_MEMORY


@inner
def _account(view: View, memory: Memory, n: int) -> None:
    """Charge the last iteration to those who were in it; demote who has used up a level, promote who waited long."""
    row, p, cells = view.row[0], memory.params, memory.request
    for k in range(n):
        i = int(cells[k, LISTED])
        r = view.request[i]
        if cells[i, SINCE] == 0.0:
            cells[i, SINCE] = r.arrival
        if r.last_run >= 0 and r.last_run == row.iterations - 1:
            cells[i, USED] += row.last_duration
            cells[i, SINCE] = row.now
            while cells[i, KEY] < p[LEVELS] - 1.0 and cells[i, USED] >= p[QUANTUM] * p[FACTOR] ** cells[i, KEY]:
                cells[i, USED] = 0.0
                cells[i, KEY] += 1.0
        elif p[PROMOTE_AFTER] > 0.0 and row.now - cells[i, SINCE] >= p[PROMOTE_AFTER]:
            cells[i, USED], cells[i, KEY], cells[i, SINCE] = 0.0, 0.0, row.now


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    n = list_present(view, memory)
    if view.row[0].iterations > memory.row[SEEN_ITERATIONS]:
        memory.row[SEEN_ITERATIONS] = view.row[0].iterations
        _account(view, memory, n)
    sort_listed(memory, n)
    fill_by_priority(view, memory, plan, n, int(memory.params[TOKEN_BUDGET]))


@dataclass(frozen=True)
class MLFQ(Policy):
    """New requests start at the top level; who has been served for a level's quantum goes one level down.

    Levels are served from the top, first come first served within one, prompts in chunks. The baseline of the LTR
    paper's code (hao-ai-lab/vllm-ltr vllm/core/scheduler.py: quantum 0.03 s, factor 2, promotion after 3 s as an
    option); the idea for LLM serving is FastServe's (arXiv 2305.05920). Where that code swaps to the host, this
    recomputes.
    """

    token_budget: int = 768
    """Tokens per iteration (the LTR code's setting with chunked prefill)."""
    quantum_s: float = 0.03
    """Seconds of service at the top level."""
    factor: float = 2.0
    """Each level's quantum is this many times that of the level above."""
    levels: int = 8
    """Number of levels; at the last one nobody is demoted."""
    promote_after_s: float = 0.0
    """A request without service for this long goes back to the top (0: never)."""

    name: ClassVar[str] = "mlfq"
    paper: ClassVar[str] = "FastServe, arXiv 2305.05920; baseline of LTR, arXiv 2408.15792"
    knows: ClassVar[str] = "service so far"
    eviction: ClassVar[str] = "lowest level, latest arrival, recompute"
    evidence: ClassVar[str] = "parameters from public code; levels and recompute are ours"
    request_memory: ClassVar[int] = PRIORITY_REQUEST_MEMORY + 2
    row_memory: ClassVar[int] = PRIORITY_ROW_MEMORY + 1
    kernel: ClassVar[Kernel | None] = _plan

    def __post_init__(self) -> None:
        """Check the parameters."""
        require(self.token_budget >= 1, self, "token_budget", "tokens >= 1")
        require(0.0 < self.quantum_s < float("inf"), self, "quantum_s", "seconds > 0")
        require(1.0 <= self.factor < float("inf"), self, "factor", "a factor >= 1")
        require(1 <= self.levels <= 64, self, "levels", "1 to 64 levels")
        require(0.0 <= self.promote_after_s < float("inf"), self, "promote_after_s", "seconds >= 0")
