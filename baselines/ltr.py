"""LTR: requests in the order of a predicted rank, which is given once and never updated."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.families.priority import (
    RANKED,
    RANKING,
    Ranks,
    list_changed,
    longest_wait,
    rekey,
    serve_in_order,
    settle,
)
from baselines.grids import TOKEN_BUDGETS
from baselines.parameters import Iterations, IterationsFrom0, Requests, Tokens
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import Memory, Plan, View

SERVER = np.dtype(
    [
        ("ranking", RANKING),
        ("iterations", "i8"),  # counted so far
    ],
    align=True,
)
"""What LTR remembers of the server."""

REQUEST = np.dtype(
    [
        ("rank", RANKED),  # a wait counts from an iteration
        ("promoted", "i8"),  # iterations of promotion left, 0: not promoted
    ],
    align=True,
)
"""What it remembers of a request."""

PROMOTION = 2.0**40
"""Keys of promoted requests are this much smaller: they go before all others, among themselves by rank."""


@dataclass(frozen=True)
class LTR(Policy):
    """One list of all requests, sorted by the predicted rank of their total output; the front of it runs.

    Who has not run for long is promoted for some iterations. Code: hao-ai-lab/vllm-ltr 13bbf6f
    vllm/core/scheduler.py. There requests with the best ranks swap others out to get KV, and swapped ones come back
    before their turn; here they come back at their turn, and on a server that does not swap newcomers wait for KV.
    """

    token_budget: Tokens = 768
    """Tokens per iteration (the code's setting with chunked prefill)."""
    batch_cap: Requests = 256
    """Requests per iteration."""
    starvation_threshold: IterationsFrom0 = 0
    """Iterations in a row without service after which a request is promoted (0: never, as in the paper's main runs; 200
    in its experiments on starvation)."""
    quantum: Iterations = 10
    """Iterations of service for which a promotion lasts."""

    name: ClassVar[str] = "ltr"
    paper: ClassVar[str] = "LTR, arXiv 2408.15792"
    knows: ClassVar[str] = "rank of the output length"
    prediction: ClassVar[str] = "rank:tau=0.52"
    eviction: ClassVar[str] = "worst rank; swap if the server swaps, else recompute under memory pressure only"
    evidence: ClassVar[str] = "public code; end of the idle count and recompute are ours"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(SERVER)
    space: ClassVar[Space] = {
        "token_budget": TOKEN_BUDGETS,
        "batch_cap": (64, 128, 256),
        "starvation_threshold": (0, 100, 400),
    }


_params, _server, _requests = record(params_of(LTR)), record(SERVER), records(REQUEST)


@inner
def _rank_arrivals(view: View, p: np.record, ranks: Ranks) -> None:
    """Give new requests their key; with a rank from a predictor the key is the score that orders like the length."""
    row = view.row[0]
    for i in range(ranks.row.seen.arrivals, row.next_arrival):
        rank = ranks.request[i]
        rank.heap.key = view.request[i].prediction
        rank.timer.key = row.iterations
        rank.timed = p.starvation_threshold > 0.0


@inner
def _promote(view: View, p: np.record, requests: np.recarray, i: int) -> None:
    q, rank = requests[i], requests.rank[i]
    rank.timer.key = view.row[0].iterations
    if q.promoted == 0:
        rank.heap.key -= PROMOTION
    q.promoted = int(p.quantum)


@inner
def _served(view: View, requests: np.recarray, i: int) -> None:
    """Count an iteration of service."""
    q, rank = requests[i], requests.rank[i]
    rank.timer.key = view.row[0].iterations
    if q.promoted > 0:
        q.promoted -= 1
        if q.promoted == 0:
            rank.heap.key += PROMOTION


@inner
def _is_due(view: View, p: np.record, rank: np.record) -> bool:
    return bool(view.row[0].iterations - rank.timer.key >= p.starvation_threshold)


@inner
def _promote_and_demote(view: View, p: np.record, ranks: Ranks, requests: np.recarray) -> None:
    """Count who was and was not in the last iteration, on the list and in the heap."""
    for k in range(ranks.row.listed):
        i = ranks.request[k].member.listed
        if view.request[i].last_run == view.row[0].iterations - 1:
            _served(view, requests, i)
        elif _is_due(view, p, ranks.request[i]):
            _promote(view, p, requests, i)
        ranks.request[i].timed = requests[i].promoted < p.quantum  # a whole promotion cannot get longer
    i = longest_wait(ranks)
    while i >= 0 and _is_due(view, p, ranks.request[i]):
        _promote(view, p, requests, i)
        ranks.request[i].timed = 0
        rekey(ranks, i)
        i = longest_wait(ranks)


@kernel_of(LTR)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, p, server, requests = view.row[0], _params(memory.params), _server(memory.row), _requests(memory.request)
    ranks = Ranks(server.ranking, requests.rank)
    _rank_arrivals(view, p, ranks)
    list_changed(view, ranks)
    if p.starvation_threshold > 0.0 and row.iterations > server.iterations:
        server.iterations = row.iterations
        _promote_and_demote(view, p, ranks, requests)
    settle(view, ranks)
    serve_in_order(view, plan, ranks, int(p.token_budget), int(p.batch_cap), False)
