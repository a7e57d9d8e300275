"""Least tokens: the replica that has the fewest tokens to compute."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.parameters import NumberFrom0, Tokens
from engine.cluster.router import Age, Router, is_better, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.cluster.work import output_left
from engine.compiled.records import params_of, record


@dataclass(frozen=True)
class LeastTokens(Router):
    """The replica with the fewest tokens left: of prompts, and expected of outputs.

    Prompts differ more than requests do, and it is prompts that the first token of the next request waits for.
    """

    output_weight: NumberFrom0 = 1.0
    """What an output token counts beside a prompt token."""
    mean_output: Tokens = 256
    """Output tokens expected of a request without a prediction."""
    age: Age = 0.0
    """Seconds from one report to the next."""

    name: ClassVar[str] = "least_tokens"
    source: ClassVar[str] = "ours, after token-load scorers (llm-d) and Llumnix"
    sees: ClassVar[str] = "tokens left at each replica"
    evidence: ClassVar[str] = "ours"


_params = record(params_of(LeastTokens))


@router_kernel_of(LeastTokens)
def _route(view: RouterView, memory: RouterMemory) -> int:
    p, best, least = _params(memory.params), -1, 0.0
    for j in range(view.replica.shape[0]):
        r = view.replica[j]
        cost = r.prompt_left + p.output_weight * output_left(r, p.mean_output)
        if is_better(view, cost, j, least, best):
            best, least = j, cost
    return best
