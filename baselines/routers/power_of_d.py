"""Power of d choices: the emptiest of a few replicas that are drawn."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from engine.cluster.router import Age, Router, drawn, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.cluster.work import requests_at
from engine.compiled.records import params_of, record
from engine.ranges import whole


@dataclass(frozen=True)
class PowerOfD(Router):
    """Of d different replicas, drawn, the one with the fewest requests.

    Two choices take most of the way from random to JSQ, and what is drawn protects against old counts: not everybody
    runs to the same replica until the next report.
    """

    d: Annotated[int, whole(1, 1024, noun="replicas")] = 2
    """Replicas that are drawn; as many as there are where there are fewer."""
    age: Age = 0.0
    """Seconds from one report to the next (AIBrix: 0, counts of the gateways' own)."""

    name: ClassVar[str] = "power_of_d"
    source: ClassVar[str] = "Mitzenmacher 2001; vllm-project/aibrix power_of_two.go"
    sees: ClassVar[str] = "requests at some replicas"
    evidence: ClassVar[str] = "public code"

    def remark(self, replicas: int) -> str:
        """That all are drawn, where that was not the default."""
        if self.d <= max(replicas, type(self).d):
            return ""
        return f"{self.spec}: draws all of the {replicas} replicas there are, as jsq does"


_params = record(params_of(PowerOfD))


@router_kernel_of(PowerOfD)
def _route(view: RouterView, memory: RouterMemory) -> int:
    replicas, best, least = view.replica.shape[0], -1, 0.0
    lacking = min(int(_params(memory.params).d), replicas)
    for j in range(replicas):
        if drawn(view, j) * (replicas - j) >= lacking:
            continue
        lacking -= 1  # each subset of d is as likely (selection sampling, Knuth volume 2, algorithm S)
        cost = float(requests_at(view.replica[j]))
        if is_better(view, cost, j, least, best):
            best, least = j, cost
    return best
