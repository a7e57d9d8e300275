"""MLFQ: a multi-level feedback queue, which knows nothing of output lengths and favours who has had little service."""

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
from baselines.parameters import Factor, Levels, Seconds, SecondsFrom0, Tokens
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import Memory, Plan, View

SERVER = np.dtype(
    [
        ("ranking", RANKING),
        ("iterations", "i8"),  # charged so far
    ],
    align=True,
)
"""What MLFQ remembers of the server."""

REQUEST = np.dtype(
    [
        ("rank", RANKED),  # key: the level; a wait counts from the latest service
        ("left_s", "f8"),  # seconds left at the level
        ("quantum_s", "f8"),  # the level's quantum, 0 before any service
    ],
    align=True,
)
"""What it remembers of a request."""


@dataclass(frozen=True)
class MLFQ(Policy):
    """New requests start at the top level; who has been served for a level's quantum goes one level down.

    Levels are served from the top, first come first served within one, prompts in chunks. The baseline of the LTR
    paper's code (hao-ai-lab/vllm-ltr vllm/core/scheduler.py: quantum 0.03 s, factor 2, promotion after 3 s as an
    option); the idea for LLM serving is FastServe's (arXiv 2305.05920). On a server that swaps newcomers push lower
    levels out to the host, as in that code; on others they wait for KV.
    """

    token_budget: Tokens = 768
    """Tokens per iteration (the LTR code's setting with chunked prefill)."""
    quantum_s: Seconds = 0.03
    """Seconds of service at the top level."""
    factor: Factor = 2.0
    """Each level's quantum is this many times that of the level above."""
    levels: Levels = 8
    """Number of levels; at the last one nobody is demoted."""
    promote_after_s: SecondsFrom0 = 0.0
    """A request without service for this long goes back to the top (0: never)."""

    name: ClassVar[str] = "mlfq"
    paper: ClassVar[str] = "FastServe, arXiv 2305.05920; baseline of LTR, arXiv 2408.15792"
    knows: ClassVar[str] = "service so far"
    eviction: ClassVar[str] = "lowest level, latest arrival; swap if the server swaps, else recompute under pressure"
    evidence: ClassVar[str] = "parameters from public code; levels and recompute are ours"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(SERVER)
    space: ClassVar[Space] = {"token_budget": TOKEN_BUDGETS, "quantum_s": (0.03, 0.1, 0.3, 1.0), "levels": (2, 4, 8)}


_params, _server, _requests = record(params_of(MLFQ)), record(SERVER), records(REQUEST)


@inner
def _demote(view: View, p: np.record, requests: np.recarray) -> None:
    """Charge the last iteration to those who were in it; who has used up a level goes one down."""
    row = view.row[0]
    for j in range(row.num_running):
        i = view.running[j]
        q, rank = requests[i], requests.rank[i]
        if view.request[i].last_run != row.iterations - 1:
            continue
        if q.quantum_s == 0.0:
            q.quantum_s = q.left_s = p.quantum_s
        rank.timer.key = row.now
        q.left_s -= row.last_duration
        if q.left_s <= 0.0 and rank.heap.key < p.levels - 1.0:
            q.quantum_s *= p.factor
            q.left_s = q.quantum_s
            rank.heap.key += 1.0


@inner
def _lift(view: View, requests: np.recarray, i: int) -> None:
    """Bring request `i` back to the top, where nobody's wait counts."""
    rank = requests.rank[i]
    requests[i].quantum_s, rank.heap.key, rank.timer.key, rank.timed = 0.0, 0.0, view.row[0].now, 0


@inner
def _promote(view: View, p: np.record, ranks: Ranks, requests: np.recarray) -> None:
    """Bring who has waited long back to the top, on the list and in the heap."""
    for k in range(ranks.row.listed):
        i = ranks.request[k].member.listed
        rank = ranks.request[i]
        rank.timed = rank.heap.key > 0.0
        if rank.timed and _is_due(view, p, rank):
            _lift(view, requests, i)
    i = longest_wait(ranks)
    while i >= 0 and _is_due(view, p, ranks.request[i]):
        _lift(view, requests, i)
        rekey(ranks, i)
        i = longest_wait(ranks)


@inner
def _is_due(view: View, p: np.record, rank: np.record) -> bool:
    return bool(view.row[0].now - rank.timer.key >= p.promote_after_s)


@kernel_of(MLFQ)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, p, server, requests = view.row[0], _params(memory.params), _server(memory.row), _requests(memory.request)
    ranks = Ranks(server.ranking, requests.rank)
    list_changed(view, ranks)
    if row.iterations > server.iterations:
        server.iterations = row.iterations
        _demote(view, p, requests)
    if p.promote_after_s > 0.0:
        _promote(view, p, ranks, requests)
    settle(view, ranks)
    serve_in_order(view, plan, ranks, int(p.token_budget), row.max_num_seqs, False)
