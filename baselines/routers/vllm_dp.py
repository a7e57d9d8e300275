"""vLLM's load balancing over data-parallel engines."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from baselines.parameters import NumberFrom0
from engine.cluster.router import Age, Router, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.cluster.work import kv_use
from engine.compiled.records import cells_of, params_of, record, records
from engine.ranges import whole

_SENT = np.dtype([("since", "i8")], align=True)
_LAST = np.dtype([("start", "i8"), ("as_of", "f8")], align=True)


@dataclass(frozen=True)
class VLLMDataParallel(Router):
    """The least of max(clients x in flight, waiting + running) + 6 x waiting x max(0, KV use - 0.5).

    Waiting and running are what the coordinator last said, with what has been sent to the engine since added to
    waiting. The search begins one engine further at each request, and takes the first of equal ones.
    """

    clients: Annotated[int, whole(1, 1024)] = 1
    """API servers in front of the engines, of which this is one."""
    kv_weight: NumberFrom0 = 6.0
    """What a waiting request counts where KV is full; half of it is nothing up to half of the KV."""
    age: Age = 0.1
    """Seconds from one report to the next: the coordinator's."""

    name: ClassVar[str] = "vllm_dp"
    source: ClassVar[str] = "vLLM 0.32 v1/engine/core_client.py, coordinator.py"
    sees: ClassVar[str] = "own requests in flight; queue and KV use, reported"
    evidence: ClassVar[str] = "public code"
    replica_memory: ClassVar[int] = cells_of(_SENT)
    row_memory: ClassVar[int] = cells_of(_LAST)


_params, _sent, _last = record(params_of(VLLMDataParallel)), records(_SENT), record(_LAST)


@router_kernel_of(VLLMDataParallel)
def _route(view: RouterView, memory: RouterMemory) -> int:
    p, sent, last, replicas = _params(memory.params), _sent(memory.replica), _last(memory.row), view.replica.shape[0]
    if view.row[0].as_of != last.as_of:
        last.as_of = view.row[0].as_of
        for j in range(replicas):
            sent[j].since = 0
    best, least = -1, 0.0
    for k in range(replicas):
        j = (last.start + k) % replicas
        r = view.replica[j]
        waiting = r.waiting + sent[j].since
        cost = max(p.clients * r.in_flight, waiting + r.running)
        cost += p.kv_weight * waiting * max(0.0, kv_use(r) - 0.5)
        if best < 0 or cost < least:
            best, least = j, cost
    last.start = (last.start + 1) % replicas
    sent[best].since += 1
    return best
