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
LEFT, QUANTUM_HERE, SINCE = range(PRIORITY_REQUEST_MEMORY, PRIORITY_REQUEST_MEMORY + 3)
"""Columns: seconds left at the level, the level's quantum (0 before any service), time of the latest service."""
SEEN_ITERATIONS = PRIORITY_ROW_MEMORY


@inner
def _demote(view: View, memory: Memory) -> bool:
    """Charge the last iteration to those who were in it; who has used up a level goes one down. True if one does."""
    row, p, cells, changed = view.row[0], memory.params, memory.request, False
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
            changed = True
    return changed


@inner
def _promote(view: View, memory: Memory, n: int) -> bool:
    """Bring who has waited long back to the top; True if there is one."""
    row, cells, changed = view.row[0], memory.request, False
    for k in range(n):
        i = int(cells[k, LISTED])
        since = max(view.request[i].arrival, cells[i, SINCE])
        if cells[i, KEY] > 0.0 and row.now - since >= memory.params[PROMOTE_AFTER]:
            cells[i, QUANTUM_HERE], cells[i, KEY], cells[i, SINCE] = 0.0, 0.0, row.now
            changed = True
    return changed


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row = view.row[0]
    n, changed = list_present(view, memory)
    if row.iterations > memory.row[SEEN_ITERATIONS]:
        memory.row[SEEN_ITERATIONS] = row.iterations
        changed = _demote(view, memory) or changed
    if memory.params[PROMOTE_AFTER] > 0.0:
        changed = _promote(view, memory, n) or changed
    if changed:
        sort_listed(memory, n)
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
    request_memory: ClassVar[int] = PRIORITY_REQUEST_MEMORY + 3
    row_memory: ClassVar[int] = PRIORITY_ROW_MEMORY + 1
    kernel: ClassVar[Kernel | None] = _plan

    def __post_init__(self) -> None:
        """Check the parameters."""
        require(self.token_budget >= 1, self, "token_budget", "tokens >= 1")
        require(0.0 < self.quantum_s < float("inf"), self, "quantum_s", "seconds > 0")
        require(1.0 <= self.factor < float("inf"), self, "factor", "a factor >= 1")
        require(1 <= self.levels <= 64, self, "levels", "1 to 64 levels")
        require(0.0 <= self.promote_after_s < float("inf"), self, "promote_after_s", "seconds >= 0")
