"""SRTF: shortest remaining (predicted) output first, preemptive in every iteration: what knowing sizes can give."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.families.priority import (
    KEY,
    LISTED,
    PRIORITY_REQUEST_MEMORY,
    PRIORITY_ROW_MEMORY,
    fill_by_priority,
    list_changed,
    settle,
)
from baselines.grids import BATCH_CAPS, TOKEN_BUDGETS
from engine.compiled.jit import inner
from engine.server.moves import remaining
from engine.server.policy import HotKernel, Kernel, Policy, Space, check_parameters, require
from engine.server.state import Memory, Plan, View

TOKEN_BUDGET, BATCH_CAP = 0, 1


@inner
def _key_by_remaining(view: View, memory: Memory, n: int) -> None:
    for k in range(n):
        i = int(memory.request[k, LISTED])
        memory.request[i, KEY] = remaining(view.row[0], view.request[i])


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    n = list_changed(view, memory)
    _key_by_remaining(view, memory, n)
    n = settle(view, memory, n)
    fill_by_priority(view, memory, plan, n, int(memory.params[TOKEN_BUDGET]), int(memory.params[BATCH_CAP]), False)


@dataclass(frozen=True)
class SRTF(Policy):
    """The requests with the fewest output tokens left run, prompts in chunks; told the truth, an anchor, not a system.

    The baseline of the LTR paper's code (hao-ai-lab/vllm-ltr 13bbf6f vllm/core/scheduler.py). With another channel of
    predictions it is SPRPT, shortest predicted remaining first.
    """

    token_budget: int = 768
    """Tokens per iteration (the LTR code's setting with chunked prefill)."""
    batch_cap: int = 256
    """Requests per iteration."""

    name: ClassVar[str] = "srtf"
    paper: ClassVar[str] = "baseline of LTR, arXiv 2408.15792"
    knows: ClassVar[str] = "output length"
    prediction: ClassVar[str] = "oracle"
    eviction: ClassVar[str] = "most output left; swap if the server swaps, else recompute under memory pressure only"
    evidence: ClassVar[str] = "public code; without swapping, ours"
    request_memory: ClassVar[int] = PRIORITY_REQUEST_MEMORY
    row_memory: ClassVar[int] = PRIORITY_ROW_MEMORY
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {"token_budget": TOKEN_BUDGETS, "batch_cap": BATCH_CAPS}

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self)
        require(self.token_budget >= 1, self, "token_budget", "tokens >= 1")
        require(self.batch_cap >= 1, self, "batch_cap", "requests >= 1")
