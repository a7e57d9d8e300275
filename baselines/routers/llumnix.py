"""Llumnix's dispatch: the replica with the most free KV for each of its requests."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.cluster.router import Age, Router, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.cluster.work import requests_at


@dataclass(frozen=True)
class Llumnix(Router):
    """The largest freeness: (free blocks - blocks that waiting requests want) over the requests there.

    A replica without requests is freer than any other.
    """

    age: Age = 0.05
    """Seconds from one poll to the next."""

    name: ClassVar[str] = "llumnix"
    source: ClassVar[str] = "Llumnix, OSDI 2024; AlibabaPAI/llumnix load_computation.py"
    sees: ClassVar[str] = "free KV, and KV that waiting requests want, reported"
    evidence: ClassVar[str] = "public code; dispatch without migration"


@router_kernel_of(Llumnix)
def _route(view: RouterView, memory: RouterMemory) -> int:
    best, least = -1, 0.0
    for j in range(view.replica.shape[0]):
        r = view.replica[j]
        requests = requests_at(r)
        cost = (r.blocks_wanted - r.free_blocks) / requests if requests > 0 else -np.inf
        if is_better(view, cost, j, least, best):
            best, least = j, cost
    return best
