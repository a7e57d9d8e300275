"""Least KV: the replica whose KV memory is used least."""

from dataclasses import dataclass
from typing import ClassVar

from engine.cluster.router import Age, Router, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.cluster.work import kv_use


@dataclass(frozen=True)
class LeastKV(Router):
    """The replica with the smallest share of its KV blocks in use.

    Requests that wait hold no KV: a replica with a queue may look emptier than one without.
    """

    age: Age = 0.05
    """Seconds from one report to the next."""

    name: ClassVar[str] = "least_kv"
    source: ClassVar[str] = "vllm-project/aibrix least_kv_cache.go"
    sees: ClassVar[str] = "KV use"
    evidence: ClassVar[str] = "public code; without KV on the host"


@router_kernel_of(LeastKV)
def _route(view: RouterView, memory: RouterMemory) -> int:
    best, least = -1, 0.0
    for j in range(view.replica.shape[0]):
        cost = kv_use(view.replica[j])
        if is_better(view, cost, j, least, best):
            best, least = j, cost
    return best
