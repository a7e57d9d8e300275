"""Round robin: one replica after the other."""

from dataclasses import dataclass
from typing import ClassVar

from engine.cluster.router import Router, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView


@dataclass(frozen=True)
class RoundRobin(Router):
    """The replicas in turn, beginning with the first."""

    name: ClassVar[str] = "round_robin"
    source: ClassVar[str] = "in every router"
    evidence: ClassVar[str] = "definition"


@router_kernel_of(RoundRobin)
def _route(view: RouterView, memory: RouterMemory) -> int:
    return int(view.row[0].index % view.replica.shape[0])
