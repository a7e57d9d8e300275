"""Dynamo's KV router: blocks to compute and blocks to hold."""

import math
from dataclasses import dataclass
from typing import ClassVar

from baselines.parameters import NumberFrom0
from engine.cluster.router import Router, drawn_for, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.compiled.jit import inner
from engine.compiled.records import params_of, record


@dataclass(frozen=True)
class DynamoKV(Router):
    """The least of blocks to prefill, this prompt's among them, + blocks of the sequences there + weight x in flight.

    With a temperature, drawn by the softmax of the costs over their range.
    """

    prefill_scale: NumberFrom0 = 1.0
    """What a block to compute counts beside a block to hold."""
    in_flight_weight: NumberFrom0 = 0.0
    """What a request in flight counts."""
    temperature: NumberFrom0 = 0.0
    """0: always the cheapest."""

    name: ClassVar[str] = "dynamo_kv"
    source: ClassVar[str] = "ai-dynamo/dynamo lib/kv-router selector/default.rs"
    sees: ClassVar[str] = "own requests and prompts in flight; KV"
    evidence: ClassVar[str] = "public code; without prefix hits"


_params = record(params_of(DynamoKV))


@inner
def _cost(view: RouterView, j: int, scale: float, weight: float) -> float:
    r = view.replica[j]
    prefill = (r.unanswered + view.request[0].prompt) / r.block_size
    return float(scale * prefill + r.num_blocks - r.free_blocks + r.blocks_wanted + weight * r.in_flight)


@router_kernel_of(DynamoKV)
def _route(view: RouterView, memory: RouterMemory) -> int:
    p = _params(memory.params)
    low = _cost(view, 0, p.prefill_scale, p.in_flight_weight)
    high = low
    for j in range(1, view.replica.shape[0]):
        cost = _cost(view, j, p.prefill_scale, p.in_flight_weight)
        low, high = min(low, cost), max(high, cost)
    best, least = -1, 0.0
    for j in range(view.replica.shape[0]):
        cost = _cost(view, j, p.prefill_scale, p.in_flight_weight)
        if p.temperature > 0.0:  # the least of such sums is drawn by the softmax (Gumbel's trick)
            cost = (cost - low) / max(high - low, 1e-12) / p.temperature
            cost += math.log(-math.log(max(drawn_for(view, j), 1e-300)))
        if is_better(view, cost, j, least, best):
            best, least = j, cost
    return best
