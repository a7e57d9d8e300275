"""Orca: iteration-level batching with reserved KV."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.families.reserved import admit_whole, run_all
from baselines.parameters import Requests
from engine.compiled.records import params_of, record
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import Memory, Plan, View


@dataclass(frozen=True)
class Orca(Policy):
    """All running requests, plus whole prompts of new ones in the same iteration while the reservation fits.

    Code: agrimUT/SLAI sarathi/core/scheduler/orca_scheduler.py; microsoft/vidur orca_replica_scheduler.py.
    A long prompt stalls every decode of its iteration.
    """

    batch_cap: Requests = 8
    """Requests in a batch (8 in the SLAI repository: reservations and activations grow with it)."""

    name: ClassVar[str] = "orca"
    paper: ClassVar[str] = "Orca, OSDI 2022"
    knows: ClassVar[str] = "longest possible request"
    eviction: ClassVar[str] = "none (KV reserved)"
    evidence: ClassVar[str] = "public code, replayed step by step"
    space: ClassVar[Space] = {"batch_cap": (8, 16, 32, 64, 128)}


_params = record(params_of(Orca))


@kernel_of(Orca)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    run_all(view, plan)
    admit_whole(view, plan, int(_params(memory.params).batch_cap))
