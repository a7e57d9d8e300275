"""Join the shortest queue: the replica with the fewest requests."""

from dataclasses import dataclass
from typing import ClassVar

from engine.cluster.router import Age, Router, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.cluster.work import requests_at


@dataclass(frozen=True)
class JSQ(Router):
    """The replica with the fewest requests, waiting or running; equal ones are drawn.

    Known as least request, least loaded and least outstanding requests, too; AIBrix's prefix-cache router does this
    with a request that matches no prefix. With counts that are old everybody goes where the queue was shortest at the
    last report, until the next one.
    """

    age: Age = 0.0
    """Seconds from one report to the next (0: the router's own count of requests in flight)."""

    name: ClassVar[str] = "jsq"
    source: ClassVar[str] = "vllm-project/aibrix least_request.go, prefix_cache.go; Vidur's LOR; Dynamo least-loaded"
    sees: ClassVar[str] = "requests at each replica"
    evidence: ClassVar[str] = "public code"


@router_kernel_of(JSQ)
def _route(view: RouterView, memory: RouterMemory) -> int:
    best, least = -1, 0.0
    for j in range(view.replica.shape[0]):
        cost = float(requests_at(view.replica[j]))
        if is_better(view, cost, j, least, best):
            best, least = j, cost
    return best
