"""ALISE: priority levels by predicted execution time, aging, and KV offloaded to the host in 8 bits."""

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
from baselines.parameters import Factor, Levels, Requests, Seconds, SecondsFrom0, Tokens
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import Memory, Plan, View

REQUEST = np.dtype(
    [
        ("rank", RANKED),  # key: the level, 0 at the top; a wait counts from a time in s
        ("estimate", "f8"),  # expected output tokens
        ("aged", "f8"),  # levels won by waiting
    ],
    align=True,
)
"""What ALISE remembers of a request."""


@dataclass(frozen=True)
class ALISE(Policy):
    """Requests with little predicted time left run first: levels of time, first come first served within one.

    Who waits `age_s` without service goes one level up and stays there; who outlives its estimate has it doubled. Where
    the server swaps, the requests with the most predicted work ahead of them, which are the last of the list, are
    offloaded in 8-bit numbers. The published description does not say how many levels there are, how aging works or
    when KV comes back: those are ours. Chunked prefill is ours, too.
    """

    token_budget: Tokens = 512
    """Tokens per iteration."""
    batch_cap: Requests = 128
    """Requests per iteration."""
    levels: Levels = 4
    """Number of levels."""
    first_level_s: Seconds = 2.0
    """Requests with less predicted time left than this (s) are at the top level."""
    factor: Factor = 2.0
    """Each level's limit is this many times that of the level above."""
    age_s: SecondsFrom0 = 3.0
    """A request without service for this long (s) goes one level up (0: never)."""
    prompt_token_s: SecondsFrom0 = 8.36e-5
    """Predicted seconds per prompt token (the shipped profile's `per_token`)."""
    context_token_s: SecondsFrom0 = 1.37e-7
    """Predicted seconds of a decode per prompt token (the shipped profile's `per_context`)."""
    decode_s: SecondsFrom0 = 0.025
    """Predicted seconds of a decode (the shipped profile's iteration without prompts: overhead and floor)."""

    name: ClassVar[str] = "alise"
    paper: ClassVar[str] = "ALISE, arXiv 2410.23537"
    knows: ClassVar[str] = "output length, once"
    prediction: ClassVar[str] = "retrieval"
    eviction: ClassVar[str] = "most predicted work ahead; 8-bit swap if the server swaps, else recompute under pressure"
    evidence: ClassVar[str] = "reconstructed from the abstract and reviews; levels, aging and chunks are ours"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(RANKING)
    space: ClassVar[Space] = {
        "token_budget": TOKEN_BUDGETS,
        "first_level_s": (0.5, 2.0, 8.0),
        "age_s": (1.0, 3.0, 10.0),
    }


_params, _ranking, _requests = record(params_of(ALISE)), record(RANKING), records(REQUEST)


@inner
def execution_seconds(p: np.record, r: np.record, output: float) -> float:
    """Predicted time that is left to request `r` if it has `output` tokens: prompt s T0, decodes n (alpha s + beta)."""
    decodes = max(0.0, output - r.generated)
    return float((r.prompt - r.prefilled) * p.prompt_token_s + decodes * (p.context_token_s * r.prompt + p.decode_s))


@inner
def _level(p: np.record, seconds: float) -> float:
    """Level 0 is below the first limit; each further limit is a factor higher; the last level is open."""
    level, limit = 0.0, p.first_level_s
    while level < p.levels - 1.0 and seconds >= limit:
        level += 1.0
        limit *= p.factor
    return level


@inner
def _estimate_arrivals(view: View, requests: np.recarray, first: int) -> None:
    """Estimates of the requests that have arrived, from the first new one on."""
    for i in range(first, view.row[0].next_arrival):
        requests[i].estimate = max(1.0, view.request[i].prediction)
        requests.rank[i].timer.key = view.request[i].arrival


@inner
def _set_level(view: View, p: np.record, requests: np.recarray, i: int) -> None:
    """Level of request `i` from what is left of its estimate and from waiting."""
    row, r, q, rank = view.row[0], view.request[i], requests[i], requests.rank[i]
    while r.generated >= q.estimate:
        q.estimate *= 2.0
    if r.last_run == row.iterations - 1:
        rank.timer.key = row.now
    elif p.age_s > 0.0 and row.now - rank.timer.key >= p.age_s:
        rank.timer.key = row.now
        q.aged += 1.0
    rank.heap.key = max(0.0, _level(p, execution_seconds(p, r, q.estimate)) - q.aged)
    # Nobody gets above the top level, whatever the estimate will be: further waiting changes nothing.
    rank.timed = p.age_s > 0.0 and q.aged < p.levels - 1.0


@inner
def _set_levels(view: View, p: np.record, ranks: Ranks, requests: np.recarray) -> None:
    """Levels of those on the list, and of those in the heap who have waited long."""
    row = view.row[0]
    for k in range(ranks.row.listed):
        _set_level(view, p, requests, ranks.request[k].member.listed)
    if row.iterations == 0:  # before the first iteration nobody's wait counts
        for k in range(ranks.row.watched):
            ranks.request[ranks.request[k].timer.listed].timer.key = row.now
    i = longest_wait(ranks)
    while i >= 0 and row.now - ranks.request[i].timer.key >= p.age_s:
        _set_level(view, p, requests, i)
        rekey(ranks, i)
        i = longest_wait(ranks)


@kernel_of(ALISE)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, requests = _params(memory.params), _requests(memory.request)
    ranks = Ranks(_ranking(memory.row), requests.rank)
    _estimate_arrivals(view, requests, ranks.row.seen.arrivals)
    list_changed(view, ranks)
    _set_levels(view, p, ranks, requests)
    settle(view, ranks)
    serve_in_order(view, plan, ranks, int(p.token_budget), int(p.batch_cap), True)
