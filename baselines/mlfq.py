"""MLFQ: a multi-level feedback queue, which knows nothing of output lengths and favours who has had little service."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.families.priority import (
    KEY,
    LISTED,
    PRIORITY_REQUEST_MEMORY,
    PRIORITY_ROW_MEMORY,
    SINCE,
    TIMED,
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

TOKEN_BUDGET, QUANTUM, FACTOR, LEVELS, PROMOTE_AFTER = 0, 1, 2, 3, 4
LEFT, QUANTUM_HERE = range(PRIORITY_REQUEST_MEMORY, PRIORITY_REQUEST_MEMORY + 2)
"""Columns: seconds left at the level, the level's quantum (0 before any service). SINCE is the latest service, and who
had none is at the top, so nobody's wait there counts."""
SEEN_ITERATIONS = PRIORITY_ROW_MEMORY


@inner
def _demote(view: View, memory: Memory) -> None:
    """Charge the last iteration to those who were in it; who has used up a level goes one down."""
    row, p, cells = view.row[0], memory.params, memory.request
    for j in range(row.num_running):
        i = view.running[j]
        if view.request[i].last_run != row.iterations - 1:
            continue
        if cells[i, QUANTUM_HERE] == 0.0:
            cells[i, QUANTUM_HERE] = cells[i, LEFT] = p[QUANTUM]
        cells[i, SINCE] = row.now
        cells[i, LEFT] -= row.last_duration
        if cells[i, LEFT] <= 0.0 and cells[i, KEY] < p[LEVELS] - 1.0:
            cells[i, QUANTUM_HERE] *= p[FACTOR]
            cells[i, LEFT] = cells[i, QUANTUM_HERE]
            cells[i, KEY] += 1.0


@inner
def _is_due(view: View, memory: Memory, i: int) -> bool:
    return bool(view.row[0].now - memory.request[i, SINCE] >= memory.params[PROMOTE_AFTER])


@inner
def _lift(view: View, memory: Memory, i: int) -> None:
    """Bring request `i` back to the top."""
    cells = memory.request
    cells[i, QUANTUM_HERE], cells[i, KEY], cells[i, SINCE], cells[i, TIMED] = 0.0, 0.0, view.row[0].now, 0.0


@inner
def _promote(view: View, memory: Memory, n: int) -> None:
    """Bring who has waited long back to the top, on the list of `n` and in the heap."""
    cells = memory.request
    for k in range(n):
        i = int(cells[k, LISTED])
        cells[i, TIMED] = 1.0 if cells[i, KEY] > 0.0 else 0.0
        if cells[i, TIMED] > 0.0 and _is_due(view, memory, i):
            _lift(view, memory, i)
    i = longest_wait(memory)
    while i >= 0 and _is_due(view, memory, i):
        _lift(view, memory, i)
        rekey(memory, i)
        i = longest_wait(memory)


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row = view.row[0]
    n = list_changed(view, memory)
    if row.iterations > memory.row[SEEN_ITERATIONS]:
        memory.row[SEEN_ITERATIONS] = row.iterations
        _demote(view, memory)
    if memory.params[PROMOTE_AFTER] > 0.0:
        _promote(view, memory, n)
    n = settle(view, memory, n)
    fill_by_priority(view, memory, plan, n, int(memory.params[TOKEN_BUDGET]), row.max_num_seqs, False)


@dataclass(frozen=True)
class MLFQ(Policy):
    """New requests start at the top level; who has been served for a level's quantum goes one level down.

    Levels are served from the top, first come first served within one, prompts in chunks. The baseline of the LTR
    paper's code (hao-ai-lab/vllm-ltr vllm/core/scheduler.py: quantum 0.03 s, factor 2, promotion after 3 s as an
    option); the idea for LLM serving is FastServe's (arXiv 2305.05920). On a server that swaps newcomers push lower
    levels out to the host, as in that code; on others they wait for KV.
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
    eviction: ClassVar[str] = "lowest level, latest arrival; swap if the server swaps, else recompute under pressure"
    evidence: ClassVar[str] = "parameters from public code; levels and recompute are ours"
    request_memory: ClassVar[int] = PRIORITY_REQUEST_MEMORY + 2
    row_memory: ClassVar[int] = PRIORITY_ROW_MEMORY + 1
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {"token_budget": TOKEN_BUDGETS, "quantum_s": (0.03, 0.1, 0.3, 1.0), "levels": (2, 4, 8)}

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self)
        require(self.token_budget >= 1, self, "token_budget", "tokens >= 1")
        require(0.0 < self.quantum_s < float("inf"), self, "quantum_s", "seconds > 0")
        require(1.0 <= self.factor < float("inf"), self, "factor", "a factor >= 1")
        require(1 <= self.levels <= 64, self, "levels", "1 to 64 levels")
        require(0.0 <= self.promote_after_s < float("inf"), self, "promote_after_s", "seconds >= 0")
