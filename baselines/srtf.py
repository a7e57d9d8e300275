"""SRTF: shortest remaining (predicted) output first, preemptive in every iteration: what knowing sizes can give."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.families.priority import RANKED, RANKING, Ranks, list_changed, serve_in_order, settle
from baselines.grids import BATCH_CAPS, TOKEN_BUDGETS
from baselines.parameters import Requests, Tokens
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.moves import remaining
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import Memory, Plan, View


@dataclass(frozen=True)
class SRTF(Policy):
    """The requests with the fewest output tokens left run, prompts in chunks; told the truth, an anchor, not a system.

    The baseline of the LTR paper's code (hao-ai-lab/vllm-ltr 13bbf6f vllm/core/scheduler.py). With another channel of
    predictions it is SPRPT, shortest predicted remaining first.
    """

    token_budget: Tokens = 768
    """Tokens per iteration (the LTR code's setting with chunked prefill)."""
    batch_cap: Requests = 256
    """Requests per iteration."""

    name: ClassVar[str] = "srtf"
    paper: ClassVar[str] = "baseline of LTR, arXiv 2408.15792"
    knows: ClassVar[str] = "output length"
    prediction: ClassVar[str] = "oracle"
    eviction: ClassVar[str] = "most output left; swap if the server swaps, else recompute under memory pressure only"
    evidence: ClassVar[str] = "public code; without swapping, ours"
    request_memory: ClassVar[int] = cells_of(RANKED)
    row_memory: ClassVar[int] = cells_of(RANKING)
    space: ClassVar[Space] = {"token_budget": TOKEN_BUDGETS, "batch_cap": BATCH_CAPS}


_params, _ranking, _ranked = record(params_of(SRTF)), record(RANKING), records(RANKED)


@kernel_of(SRTF)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, ranks = _params(memory.params), Ranks(_ranking(memory.row), _ranked(memory.request))
    list_changed(view, ranks)
    for k in range(ranks.row.listed):
        i = ranks.request[k].member.listed
        ranks.request[i].heap.key = remaining(view.row[0], view.request[i])
    settle(view, ranks)
    serve_in_order(view, plan, ranks, int(p.token_budget), int(p.batch_cap), False)
