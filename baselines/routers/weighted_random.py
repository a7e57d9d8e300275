"""Random in proportion to speed: the best split that knows the replicas but not the requests."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.parameters import Tokens
from engine.cluster.router import Router, drawn, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.compiled.records import params_of, record


@dataclass(frozen=True)
class WeightedRandom(Router):
    """A replica with a probability in proportion to one over the seconds that it needs for a mean request.

    Among routers that look neither at the request nor at the state this split sustains most.
    """

    mean_prompt: Tokens = 512
    """Prompt tokens of a mean request."""
    mean_output: Tokens = 256
    """Output tokens of a mean request."""

    name: ClassVar[str] = "weighted_random"
    source: ClassVar[str] = "folklore; weights in vllm-router and NGINX"
    sees: ClassVar[str] = "speed of the replicas"
    evidence: ClassVar[str] = "definition"


_params = record(params_of(WeightedRandom))


@router_kernel_of(WeightedRandom)
def _route(view: RouterView, memory: RouterMemory) -> int:
    p, replicas = _params(memory.params), view.replica.shape[0]
    total = 0.0
    for j in range(replicas):
        r = view.replica[j]
        total += 1.0 / (p.mean_prompt * r.prefill_s + p.mean_output * r.decode_s)
    left = drawn(view, 0) * total
    for j in range(replicas - 1):
        r = view.replica[j]
        left -= 1.0 / (p.mean_prompt * r.prefill_s + p.mean_output * r.decode_s)
        if left < 0.0:
            return j
    return replicas - 1
