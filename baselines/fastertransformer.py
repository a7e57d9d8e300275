"""FasterTransformer: static, request-level batching."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.families.reserved import admit_whole, run_all
from baselines.parameters import Requests
from engine.compiled.records import params_of, record
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import Memory, Plan, View


@dataclass(frozen=True)
class FasterTransformer(Policy):
    """A batch is filled when the previous one has left entirely; nobody joins midway.

    Code: agrimUT/SLAI sarathi/core/scheduler/faster_transformer_scheduler.py. Finished members leave the computation
    and free their KV; nobody takes their place until all are done. Not maximally stable (arXiv 2504.07347).
    """

    batch_cap: Requests = 8
    """Requests in a batch (8 in the SLAI repository)."""

    name: ClassVar[str] = "fastertransformer"
    paper: ClassVar[str] = "FasterTransformer, NVIDIA 2019"
    knows: ClassVar[str] = "longest possible request"
    eviction: ClassVar[str] = "none (KV reserved)"
    evidence: ClassVar[str] = "public code, replayed step by step"
    space: ClassVar[Space] = {"batch_cap": (8, 16, 32, 64, 128)}


_params = record(params_of(FasterTransformer))


@kernel_of(FasterTransformer)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    if view.row[0].num_running > 0:
        run_all(view, plan)
    else:
        admit_whole(view, plan, int(_params(memory.params).batch_cap))
