"""Least finish time: the replica that would be done with everything first, this request included."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.parameters import Tokens
from engine.cluster.router import Age, Router, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.cluster.work import seconds_left, seconds_of
from engine.compiled.records import params_of, record


@dataclass(frozen=True)
class LeastFinishTime(Router):
    """The replica with the least seconds of work, those of this request there among them.

    It knows that replicas differ in speed. It is greedy: where replicas suit different requests it takes what is best
    for this one, and sustains less than MaxWeight.
    """

    mean_output: Tokens = 256
    """Output tokens expected of a request without a prediction."""
    age: Age = 0.0
    """Seconds from one report to the next."""

    name: ClassVar[str] = "least_finish_time"
    source: ClassVar[str] = "minimum completion time, list scheduling on unrelated machines"
    sees: ClassVar[str] = "tokens left at each replica, prices of its tokens, the request"
    evidence: ClassVar[str] = "definition"


_params = record(params_of(LeastFinishTime))


@router_kernel_of(LeastFinishTime)
def _route(view: RouterView, memory: RouterMemory) -> int:
    mean, best, least = _params(memory.params).mean_output, -1, 0.0
    for j in range(view.replica.shape[0]):
        r = view.replica[j]
        cost = seconds_left(r, mean) + seconds_of(view.request[0], r, mean)
        if is_better(view, cost, j, least, best):
            best, least = j, cost
    return best
