"""SGLang's cache-aware router, the part that balances load."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from baselines.parameters import Factor, RequestsFrom0
from engine.cluster.router import Router, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.compiled.records import cells_of, params_of, record, records

_TREE = np.dtype([("tokens", "i8")], align=True)


@dataclass(frozen=True)
class SGLang(Router):
    """Out of balance, the replica with the fewest requests in flight; in balance, as a request without a match.

    Out of balance: the most in flight are more than `absolute` above the fewest, and more than `relative` times them. A
    request that matches no prefix goes to the least loaded one, or in earlier versions to the smallest tree of prompts.
    """

    absolute: RequestsFrom0 = 64
    """Requests in flight by which replicas may differ ..."""
    relative: Factor = 1.5
    """... or by this factor."""
    unmatched: Literal["least_loaded", "smallest_tree"] = "least_loaded"
    """Where a request without a match goes while loads are in balance."""

    name: ClassVar[str] = "sglang"
    source: ClassVar[str] = "sgl-project/sglang sgl-model-gateway cache_aware.rs"
    sees: ClassVar[str] = "own requests in flight; prompts sent"
    evidence: ClassVar[str] = "public code; no prefix matches, trees count tokens and forget nothing"
    replica_memory: ClassVar[int] = cells_of(_TREE)

    def encode(self, name: str, value: object) -> float:
        """What becomes of a request without a match as the number that the kernel compares."""
        return super().encode(name, value == "smallest_tree" if name == "unmatched" else value)


_params, _trees = record(params_of(SGLang)), records(_TREE)


@router_kernel_of(SGLang)
def _route(view: RouterView, memory: RouterMemory) -> int:
    p, trees = _params(memory.params), _trees(memory.replica)
    low, high = view.replica[0].in_flight, view.replica[0].in_flight
    for j in range(view.replica.shape[0]):
        low, high = min(low, view.replica[j].in_flight), max(high, view.replica[j].in_flight)
    by_tree = p.unmatched > 0.0 and not (high - low > p.absolute and high > p.relative * low)
    best, least = -1, 0.0
    for j in range(view.replica.shape[0]):
        cost = float(trees[j].tokens if by_tree else view.replica[j].in_flight)
        if is_better(view, cost, j, least, best):
            best, least = j, cost
    trees[best].tokens += view.request[0].prompt
    return best
