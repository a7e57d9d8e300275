"""LTR: requests in the order of a predicted rank, which is given once and never updated."""

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

TOKEN_BUDGET, BATCH_CAP, STARVATION, QUANTUM = 0, 1, 2, 3

LEFT = PRIORITY_REQUEST_MEMORY
"""Column: iterations of promotion left (0: not promoted). SINCE is the iteration from which the idle counter counts."""
NUM_RANKED, SEEN_ITERATIONS = PRIORITY_ROW_MEMORY, PRIORITY_ROW_MEMORY + 1

PROMOTION = 2.0**40
"""Keys of promoted requests are this much smaller: they go before all others, among themselves by rank."""


@inner
def _rank_arrivals(view: View, memory: Memory) -> None:
    """Give new requests their key; with a rank from a predictor the key is the score that orders like the length."""
    row, cells = view.row[0], memory.request
    for i in range(int(memory.row[NUM_RANKED]), row.next_arrival):
        cells[i, KEY] = view.request[i].prediction
        cells[i, SINCE] = row.iterations
        cells[i, TIMED] = 1.0 if memory.params[STARVATION] > 0.0 else 0.0
    memory.row[NUM_RANKED] = row.next_arrival


@inner
def _promote(view: View, memory: Memory, i: int) -> None:
    row, p, cells = view.row[0], memory.params, memory.request
    cells[i, SINCE] = row.iterations
    if cells[i, LEFT] == 0.0:
        cells[i, KEY] -= PROMOTION
    cells[i, LEFT] = p[QUANTUM]


@inner
def _promote_and_demote(view: View, memory: Memory, n: int) -> None:
    """Count who was and was not in the last iteration, on the list of `n` and in the heap."""
    row, p, cells = view.row[0], memory.params, memory.request
    for k in range(n):
        i = int(cells[k, LISTED])
        if view.request[i].last_run == row.iterations - 1:
            cells[i, SINCE] = row.iterations
            if cells[i, LEFT] > 0.0:
                cells[i, LEFT] -= 1.0
                if cells[i, LEFT] == 0.0:
                    cells[i, KEY] += PROMOTION
        elif row.iterations - cells[i, SINCE] >= p[STARVATION]:
            _promote(view, memory, i)
        cells[i, TIMED] = 1.0 if cells[i, LEFT] < p[QUANTUM] else 0.0  # a whole promotion cannot get longer
    i = longest_wait(memory)
    while i >= 0 and row.iterations - cells[i, SINCE] >= p[STARVATION]:
        _promote(view, memory, i)
        cells[i, TIMED] = 0.0
        rekey(memory, i)
        i = longest_wait(memory)


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row = view.row[0]
    n = list_changed(view, memory)
    _rank_arrivals(view, memory)
    if memory.params[STARVATION] > 0.0 and row.iterations > memory.row[SEEN_ITERATIONS]:
        memory.row[SEEN_ITERATIONS] = row.iterations
        _promote_and_demote(view, memory, n)
    n = settle(view, memory, n)
    fill_by_priority(view, memory, plan, n, int(memory.params[TOKEN_BUDGET]), int(memory.params[BATCH_CAP]), False)


@dataclass(frozen=True)
class LTR(Policy):
    """One list of all requests, sorted by the predicted rank of their total output; the front of it runs.

    Who has not run for long is promoted for some iterations. Code: hao-ai-lab/vllm-ltr 13bbf6f
    vllm/core/scheduler.py. There requests with the best ranks swap others out to get KV, and swapped ones come back
    before their turn; here they come back at their turn, and on a server that does not swap newcomers wait for KV.
    """

    token_budget: int = 768
    """Tokens per iteration (the code's setting with chunked prefill)."""
    batch_cap: int = 256
    """Requests per iteration."""
    starvation_threshold: int = 0
    """Iterations in a row without service after which a request is promoted (0: never, as in the paper's main runs; 200
    in its experiments on starvation)."""
    quantum: int = 10
    """Iterations of service for which a promotion lasts."""

    name: ClassVar[str] = "ltr"
    paper: ClassVar[str] = "LTR, arXiv 2408.15792"
    knows: ClassVar[str] = "rank of the output length"
    prediction: ClassVar[str] = "rank:tau=0.52"
    eviction: ClassVar[str] = "worst rank; swap if the server swaps, else recompute under memory pressure only"
    evidence: ClassVar[str] = "public code; end of the idle count and recompute are ours"
    request_memory: ClassVar[int] = PRIORITY_REQUEST_MEMORY + 1
    row_memory: ClassVar[int] = PRIORITY_ROW_MEMORY + 2
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {
        "token_budget": TOKEN_BUDGETS,
        "batch_cap": (64, 128, 256),
        "starvation_threshold": (0, 100, 400),
    }

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self)
        require(self.token_budget >= 1, self, "token_budget", "tokens >= 1")
        require(self.batch_cap >= 1, self, "batch_cap", "requests >= 1")
        require(self.starvation_threshold >= 0, self, "starvation_threshold", "iterations >= 0")
        require(self.quantum >= 1, self, "quantum", "iterations >= 1")
