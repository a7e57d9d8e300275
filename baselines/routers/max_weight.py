"""MaxWeight: where the work that waits times the work that this request brings is least."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.parameters import Tokens
from engine.cluster.router import Age, Router, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.cluster.work import seconds_left, seconds_of
from engine.compiled.records import params_of, record


@dataclass(frozen=True)
class MaxWeight(Router):
    """The replica with the least product of its seconds of work and the seconds of this request on it.

    The rule that makes the sum of squares of the replicas' work fall fastest: it sustains whatever can be sustained
    for replicas that suit different requests, and need not know at which rates these come. Among replicas without
    work it takes the one on which the request is shortest.
    """

    mean_output: Tokens = 256
    """Output tokens expected of a request without a prediction."""
    age: Age = 0.0
    """Seconds from one report to the next."""

    name: ClassVar[str] = "max_weight"
    source: ClassVar[str] = "Tassiulas, Ephremides 1992; weighted workload routing for affinity scheduling"
    sees: ClassVar[str] = "tokens left at each replica, prices of its tokens, the request"
    evidence: ClassVar[str] = "theorem for queues; for batches ours"


_params = record(params_of(MaxWeight))


@router_kernel_of(MaxWeight)
def _route(view: RouterView, memory: RouterMemory) -> int:
    mean, best, least, brings_least = _params(memory.params).mean_output, -1, 0.0, 0.0
    for j in range(view.replica.shape[0]):
        r = view.replica[j]
        brings = seconds_of(view.request[0], r, mean)
        cost = seconds_left(r, mean) * brings
        if cost == least and best >= 0:
            is_next = is_better(view, brings, j, brings_least, best)
        else:
            is_next = is_better(view, cost, j, least, best)
        if is_next:
            best, least, brings_least = j, cost, brings
    return best
