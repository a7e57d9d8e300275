"""AIBrix's gateway: least request, throughput, least KV, and the part of its prefix-cache router that balances load."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from baselines.parameters import NumberFrom0, RequestsFrom0
from engine.cluster.router import Age, Router, drawn, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.cluster.work import kv_use, requests_at
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records

STRATEGIES = "prefix_cache", "least_request", "throughput", "least_kv"
PREFIX_CACHE, LEAST_REQUEST, THROUGHPUT, LEAST_KV = range(4)
_SENT = np.dtype([("prompt", "i8")], align=True)


@dataclass(frozen=True)
class AIBrix(Router):
    """One of AIBrix's strategies; equal replicas are drawn.

    least_request: the fewest requests in flight. least_kv: the least KV in use. throughput: the least 2 x mean prompt
    tokens + mean output tokens of all requests there, whatever is there now. prefix_cache: the replica that holds the
    prompt's prefix, if its requests in flight are at most the mean + `deviations` standard deviations, or are the
    fewest where replicas differ by more than `gap`; else as least_request. Without sessions nobody holds a prefix.
    """

    strategy: Literal["prefix_cache", "least_request", "throughput", "least_kv"] = "prefix_cache"
    """Which."""
    gap: RequestsFrom0 = 8
    """Requests in flight by which replicas may differ (prefix_cache)."""
    deviations: NumberFrom0 = 1.0
    """Standard deviations above the mean that a holder may have in flight (prefix_cache)."""
    sessions: RequestsFrom0 = 0
    """Sessions, drawn, for traces do not say them: the replica that got a session's last request holds its prefix."""
    age: Age = 0.05
    """Seconds from one scrape to the next (KV, outputs)."""

    name: ClassVar[str] = "aibrix"
    source: ClassVar[str] = "vllm-project/aibrix pkg/plugins/gateway/algorithms"
    sees: ClassVar[str] = "own requests in flight; KV use, outputs, reported; prompts sent"
    evidence: ClassVar[str] = "public code; holders save no prefill here, throughput has the outputs so far"
    replica_memory: ClassVar[int] = cells_of(_SENT)

    def encode(self, name: str, value: object) -> float:
        """The strategy as the number that the kernel compares."""
        return super().encode(name, STRATEGIES.index(str(value)) if name == "strategy" else value)

    def memory(self, replicas: int) -> RouterMemory:
        """Fresh memory for one run, with the holder of each session: its label + 1."""
        return super().memory(replicas)._replace(row=np.zeros(max(1, self.sessions)))


_params, _sent = record(params_of(AIBrix)), records(_SENT)


@inner
def _cost(strategy: int, view: RouterView, sent: np.ndarray, j: int) -> float:
    """What the strategy wants least of."""
    r = view.replica[j]
    if strategy == LEAST_KV:
        return kv_use(r)
    if strategy == THROUGHPUT:
        return float(2.0 * sent[j].prompt / max(1, r.sent) + r.generated / max(1, requests_at(r)))
    return float(r.in_flight)


@inner
def _most_of_holder(p: np.record, view: RouterView) -> float:
    """Requests in flight that a holder of the prefix may have."""
    n, low, high, total, squares = view.replica.shape[0], view.replica[0].in_flight, 0, 0.0, 0.0
    for j in range(n):
        its = view.replica[j].in_flight
        low, high, total = min(low, its), max(high, its), total + its
    for j in range(n):
        squares += (view.replica[j].in_flight - total / n) ** 2
    spread = math.sqrt(squares / (n - 1)) if n > 1 else 0.0
    return float(low) if high - low > p.gap else total / n + p.deviations * spread


@inner
def _holder(p: np.record, view: RouterView, label: float) -> int:
    """The replica with this label + 1, if it is not too loaded; else -1."""
    for j in range(view.replica.shape[0] if label > 0.0 else 0):
        if view.replica[j].label + 1.0 == label:
            return j if view.replica[j].in_flight <= _most_of_holder(p, view) else -1
    return -1


@router_kernel_of(AIBrix)
def _route(view: RouterView, memory: RouterMemory) -> int:
    p, sent = _params(memory.params), _sent(memory.replica)
    session, best, least = int(drawn(view, 0) * p.sessions), -1, 0.0
    if p.strategy == PREFIX_CACHE:
        best = _holder(p, view, memory.row[session])
    if best < 0:
        for j in range(view.replica.shape[0]):
            cost = _cost(int(p.strategy), view, sent, j)
            if is_better(view, cost, j, least, best):
                best, least = j, cost
    sent[best].prompt += view.request[0].prompt
    memory.row[session] = view.replica[best].label + 1.0 if p.sessions > 0 else 0.0
    return best
