"""A learned router as a router like the others: features of each replica and one small network in a compiled kernel."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from agents.learning.learned.network import forward, packed, scratch_cells
from agents.learning.learned.router_bundle import FEATURE_NAMES, RouterBundle
from agents.learning.learned.stored_policy import POLICY_FILE
from engine.cluster.features import REPLICA_NAMES, scale_of, show_replica, show_request
from engine.cluster.router import Age, Router, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.config import EngineConfig
from engine.errors import InputError
from engine.spec import Spec

_REPLICA, _ALL = len(REPLICA_NAMES), len(FEATURE_NAMES)
_CELLS = (_ALL + 1) // 2
"""Cells of 8 bytes in which the features stand, 4 bytes each."""


@dataclass(frozen=True)
class LearnedRouter(Router):
    """The replica with the largest logit of a trained network; equal ones are drawn.

    Every replica is scored by the same network, which sees its features and those of the request.
    """

    name: ClassVar[str] = "learned"
    source: ClassVar[str] = "ours: trained on simulated requests"
    sees: ClassVar[str] = "own requests and prompts in flight; tokens left, queue, KV, reported; prices; the request"
    evidence: ClassVar[str] = "ours"

    path: str
    """Where it came from: the folder as it was given."""
    bundle: RouterBundle = field(repr=False, compare=False)
    """Network, normalisation and features."""
    age: Age = 0.0
    """Seconds from one report to the next."""

    def params(self, config: EngineConfig) -> np.ndarray:
        """Those of the network (`agents.learning.learned.network.packed`)."""
        return packed(self.bundle, self.bundle.columns)

    def memory(self, replicas: int) -> RouterMemory:
        """Fresh memory with room for the features of a replica and for the layers."""
        cells = _CELLS + scratch_cells(self.bundle)
        return RouterMemory(self.params(EngineConfig()), np.zeros((replicas, 1)), np.zeros(cells))

    @property
    def spec(self) -> str:
        """The folder, which is how the command line takes it, and the age."""
        return str(Spec(self.path, f"age={self.age:g}" if self.age else ""))


@router_kernel_of(LearnedRouter)
def _route(view: RouterView, memory: RouterMemory) -> int:
    features, scratch = memory.row[:_CELLS].view(np.float32), memory.row[_CELLS:]
    scale, best, least = scale_of(view), -1, 0.0
    show_request(view, scale, features[_REPLICA:_ALL])
    for j in range(view.replica.shape[0]):
        show_replica(view, j, scale, features[:_REPLICA])
        cost = -scratch[forward(memory.params, features, scratch)]
        if is_better(view, cost, j, least, best):
            best, least = j, cost
    return best


def load_router(folder: str | Path, age: float = 0.0) -> LearnedRouter:
    """The router of a bundle folder, or of a training run: its best bundle, or its last.

    Args:
        folder: where it is.
        age: seconds from one report of the replicas to the next.

    Raises:
        InputError: neither, or a damaged or foreign bundle.
    """
    path = Path(folder)
    for place in (path, path / "best", path / "final"):
        if (place / POLICY_FILE).is_file():
            return LearnedRouter(str(folder), RouterBundle.load(place), age)
    raise InputError(f"{folder}: expected the bundle of a router ({POLICY_FILE}) or a training run with one")
