"""llm-d (Gateway API inference extension): a weighted sum of scores."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.parameters import NumberFrom0, Tokens
from engine.cluster.router import Age, Router, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.cluster.work import kv_use
from engine.compiled.jit import inner
from engine.compiled.records import params_of, record


@dataclass(frozen=True)
class LLMD(Router):
    """The replica with the largest weighted sum of scores between 0 and 1; equal ones are drawn.

    queue, running: (most - its) / (most - fewest), of waiting and of running requests; kv: share of KV that is free;
    active: (most - its) / most, of the requests in flight; load: half of 1 - waiting / 128; tokens: 1 - prompt tokens
    in flight, this request's among them, over `token_limit`.
    """

    queue: NumberFrom0 = 2.0
    """Weight of the queue scorer ..."""
    kv: NumberFrom0 = 2.0
    """... of KV use, ..."""
    running: NumberFrom0 = 0.0
    """... of running requests, ..."""
    active: NumberFrom0 = 0.0
    """... of requests in flight, ..."""
    load: NumberFrom0 = 0.0
    """... of the load-aware scorer, ..."""
    tokens: NumberFrom0 = 0.0
    """... and of the token-load scorer."""
    token_limit: Tokens = 4_194_304
    """Prompt tokens in flight that score 0."""
    age: Age = 0.05
    """Seconds from one scrape to the next."""

    name: ClassVar[str] = "llm_d"
    source: ClassVar[str] = "llm-d/llm-d-router pkg/epp defaults.go, scheduling/scorer"
    sees: ClassVar[str] = "queue, KV use, running requests, reported; own requests and prompts in flight"
    evidence: ClassVar[str] = "public code; without prefix and LoRA scorers"


_params = record(params_of(LLMD))
_MOST_WAITING = 128


@inner
def _of_range(value: int, low: int, high: int) -> float:
    """1 for the lowest of a range, 0 for the highest; 1 where there is no range."""
    return float((high - value) / (high - low)) if high > low else 1.0


@inner
def _score(p: np.record, view: RouterView, j: int, most: tuple[int, int, int, int, int]) -> float:
    """The weighted sum of replica `j`; `most`: least and most waiting, least and most running, most in flight."""
    r = view.replica[j]
    score = p.queue * _of_range(r.waiting, most[0], most[1]) + p.kv * (1.0 - kv_use(r))
    score += p.running * _of_range(r.running, most[2], most[3]) + p.active * _of_range(r.in_flight, 0, most[4])
    score += p.load * 0.5 * (1.0 - min(r.waiting, _MOST_WAITING) / _MOST_WAITING)
    score += p.tokens * max(0.0, 1.0 - (r.unanswered + view.request[0].prompt) / p.token_limit)
    return float(score)


@router_kernel_of(LLMD)
def _route(view: RouterView, memory: RouterMemory) -> int:
    r = view.replica[0]
    low, high, least, most, active = r.waiting, r.waiting, r.running, r.running, r.in_flight
    for j in range(view.replica.shape[0]):
        r = view.replica[j]
        low, high = min(low, r.waiting), max(high, r.waiting)
        least, most, active = min(least, r.running), max(most, r.running), max(active, r.in_flight)
    best, cost = -1, 0.0
    for j in range(view.replica.shape[0]):
        its = -_score(_params(memory.params), view, j, (low, high, least, most, active))
        if is_better(view, its, j, cost, best):
            best, cost = j, its
    return best
