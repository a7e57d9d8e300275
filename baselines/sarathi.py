"""Sarathi-Serve: chunked prefill, decode first (stall-free batching)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from baselines.grids import TOKEN_BUDGETS
from baselines.parameters import Order, Tokens
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.moves import admit_chunks, continue_prefills, decode_oldest_first
from engine.server.policy import Policy, Space, kernel_of
from engine.server.queue import FCFS, QUEUE, QUEUED, SPF, Queue
from engine.server.state import Memory, Plan, View


@dataclass(frozen=True)
class Sarathi(Policy):
    """All decodes (oldest first), then started prompts, then new ones, up to one token budget for the iteration.

    Decodes are never limited by the budget. A decode without a free block evicts the youngest running request.
    Code: agrimUT/SLAI sarathi/core/scheduler/sarathi_scheduler.py, which adds the shortest-prompt-first order.
    """

    token_budget: Tokens = 512
    """Tokens per iteration, decodes included (the chunk size of the paper; the server's max_batched_tokens also
    applies)."""
    order: Order = "fcfs"
    """Order of the waiting queue: fcfs or spf (shortest prompt first)."""

    name: ClassVar[str] = "sarathi"
    paper: ClassVar[str] = "Sarathi-Serve, OSDI 2024, arXiv 2403.02310"
    knows: ClassVar[str] = "prompt length"
    eviction: ClassVar[str] = "youngest running request, recompute"
    evidence: ClassVar[str] = "public code, replayed step by step"
    request_memory: ClassVar[int] = cells_of(QUEUED)
    row_memory: ClassVar[int] = cells_of(QUEUE)
    space: ClassVar[Space] = {"token_budget": TOKEN_BUDGETS, "order": ("fcfs", "spf")}

    def encode(self, name: str, value: Any) -> float:
        """The order as the number that the kernel compares."""
        return float({"fcfs": FCFS, "spf": SPF}[value] if name == "order" else value)


_params, _row, _requests = record(params_of(Sarathi)), record(QUEUE), records(QUEUED)


@kernel_of(Sarathi)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, queue = _params(memory.params), Queue(_row(memory.row), _requests(memory.request))
    budget = min(int(p.token_budget), view.row[0].max_batched_tokens)
    last = decode_oldest_first(view, plan)
    continue_prefills(view, plan, last, budget)
    admit_chunks(view, plan, queue, int(p.order), budget, True)
