"""LMetric: new prompt tokens times requests, without a parameter."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from engine.cluster.router import Router, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.compiled.records import params_of, record


@dataclass(frozen=True)
class LMetric(Router):
    """The least product of the prompt tokens to compute and one more than the load.

    SGLang's: prompt tokens of this request x (requests in flight + 1), which without prefixes is JSQ. Dynamo's: prompt
    tokens without an answer, this request's among them, x (KV blocks in use or wanted + 1).
    """

    form: Literal["dynamo", "sglang"] = "dynamo"
    """Whose form of it."""

    name: ClassVar[str] = "lmetric"
    source: ClassVar[str] = "arXiv 2603.15202; sglang lmetric.rs, Dynamo option lmetric"
    sees: ClassVar[str] = "own requests and prompts in flight; KV"
    evidence: ClassVar[str] = "public code; without prefix hits"

    def encode(self, name: str, value: object) -> float:
        """The form as the number that the kernel compares."""
        return float(value == "dynamo")


_params = record(params_of(LMetric))


@router_kernel_of(LMetric)
def _route(view: RouterView, memory: RouterMemory) -> int:
    is_dynamo, best, least = _params(memory.params).form > 0.0, -1, 0.0
    for j in range(view.replica.shape[0]):
        r = view.replica[j]
        cost = float(view.request[0].prompt * (r.in_flight + 1))
        if is_dynamo:
            blocks = r.num_blocks - r.free_blocks + r.blocks_wanted
            cost = float((r.unanswered + view.request[0].prompt) * (blocks + 1))
        if is_better(view, cost, j, least, best):
            best, least = j, cost
    return best
