"""Uniformly random: the router of the reference paper's Theorem 2, which looks at nothing."""

from dataclasses import dataclass
from typing import ClassVar

from engine.cluster.router import Router, drawn, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView


@dataclass(frozen=True)
class Random(Router):
    """Any replica, each as likely.

    With identical replicas it is stable wherever any router is; with different ones only up to the number of replicas
    times the speed of the slowest.
    """

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "arXiv 2508.01002, Theorem 2; in every router"
    evidence: ClassVar[str] = "definition"


@router_kernel_of(Random)
def _route(view: RouterView, memory: RouterMemory) -> int:
    return int(drawn(view, 0) * view.replica.shape[0])
