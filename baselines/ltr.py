"""LTR: requests in the order of a predicted rank, which is given once and never updated."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.families.priority import (
    RANKED,
    RANKING,
    Ranks,
    enlist,
    list_changed,
    longest_wait,
    next_in_order,
    rekey,
    serve_in_order,
    settle,
)
from baselines.grids import TOKEN_BUDGETS
from baselines.parameters import Iterations, IterationsFrom0, Requests, Tokens
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.kv import blocks_to_admit, host_need, next_need, tokens_left
from engine.server.moves import enter, give, swap_out
from engine.server.plan import drop
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import RUNNING, Memory, Plan, View

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
        ("chosen", "i8"),  # of line k: the request at place k of the batch, and its tokens
        ("tokens", "i8"),
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
    vllm/core/scheduler.py. On a server that swaps, the batch is chosen without regard to KV, and the worst ranks make
    way for it, its own tail in the end. As there, every running request counts as one that needs another block. Where
    the host has no room, or the server does not swap, which that code does not know, newcomers wait for KV.
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


@inner
def _is_too_long(row: np.record, r: np.record) -> bool:
    return bool(r.status != RUNNING and r.prompt > row.max_model_len)


@inner
def _counted_blocks(view: View, i: int) -> int:
    """KV blocks that LTR counts for a request of the batch beside those it holds: one if it runs, needed or not."""
    row, r = view.row[0], view.request[i]
    if _is_too_long(row, r):
        return 0
    return 1 if r.status == RUNNING else blocks_to_admit(r, row.block_size) + (r.host > 0)


@inner
def _choose(view: View, p: np.record, ranks: Ranks, requests: np.recarray) -> int:
    """The best ranks that the iteration has tokens for, whether there is KV for them or not; returns how many."""
    row, m, n, taken = view.row[0], ranks.row, 0, 0
    budget = min(int(p.token_budget), row.max_batched_tokens)
    m.next, m.last, m.victim, m.host, m.blocked = 0, m.listed, 0, row.free_host, 0
    while taken < budget and n < p.batch_cap:
        i = next_in_order(view, ranks)
        if i < 0:
            break
        r = view.request[i]
        enlist(ranks, i)
        requests[n].chosen, requests[n].tokens = i, min(tokens_left(r), budget - taken)
        taken += 0 if _is_too_long(row, r) else requests[n].tokens
        n += 1
    return n


@inner
def _lacking(view: View, requests: np.recarray, n: int) -> tuple[int, int]:
    """KV blocks and seats that the `n` chosen lack."""
    row = view.row[0]
    blocks, seats = row.watermark_blocks - row.free_blocks, row.num_running + row.leaving - row.max_num_seqs
    for k in range(n):
        blocks += _counted_blocks(view, requests[k].chosen)
        seats += view.request[requests[k].chosen].status != RUNNING
    return blocks, seats


@inner
def _find_victims(view: View, ranks: Ranks, requests: np.recarray, n: int) -> tuple[int, bool]:
    """The worst ranks make way for the `n` chosen, from place `last` of the list on; then the last of the chosen.

    Returns:
        (how many of the chosen stay, at least one; whether the host has room for the KV of the others).
    """
    row, m, host = view.row[0], ranks.row, view.row[0].free_host
    blocks, seats = _lacking(view, requests, n)
    while (blocks > 0 or seats > 0) and m.last > m.next:
        m.last -= 1
        r = view.request[ranks.request[m.last].member.listed]
        if r.status == RUNNING:
            blocks -= r.blocks
            seats -= 1
            host -= host_need(row, r, False)
    while (blocks > 0 or seats > 0) and n > 1:
        n -= 1
        r = view.request[requests[n].chosen]
        blocks -= _counted_blocks(view, requests[n].chosen)
        seats -= 1
        if r.status == RUNNING:
            blocks -= r.blocks
            host -= host_need(row, r, False)
    return n, host >= 0


@inner
def _swap_out_running(view: View, plan: Plan, i: int) -> None:
    if view.request[i].status == RUNNING:
        swap_out(view, plan, i, False)


@inner
def _serve_by_swapping(view: View, plan: Plan, p: np.record, ranks: Ranks, requests: np.recarray) -> bool:
    """The best ranks, for which others make way; False, and nothing is planned, if the host has no room for these."""
    row, draft, m, listed = view.row[0], plan.draft[0], ranks.row, ranks.row.listed
    chosen = _choose(view, p, ranks, requests)
    kept, has_room = _find_victims(view, ranks, requests, chosen)
    if not has_room:
        return False
    for k in range(listed - 1, m.last - 1, -1):
        _swap_out_running(view, plan, ranks.request[k].member.listed)
    for k in range(chosen - 1, kept - 1, -1):
        _swap_out_running(view, plan, requests[k].chosen)
    for k in range(kept):
        i, tokens = requests[k].chosen, requests[k].tokens
        r = view.request[i]
        if _is_too_long(row, r):
            drop(plan, i)
        elif r.status != RUNNING:
            if draft.seats < row.max_num_seqs and blocks_to_admit(r, row.block_size) <= draft.free:
                enter(view, plan, i, tokens)
        elif next_need(r, tokens, row.block_size) <= draft.free:
            draft.free -= next_need(r, tokens, row.block_size)
            give(plan, i, tokens)
    return True


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
    if row.free_host > 0 and _serve_by_swapping(view, plan, p, ranks, requests):
        return
    settle(view, ranks)
    serve_in_order(view, plan, ranks, int(p.token_budget), int(p.batch_cap), False)
