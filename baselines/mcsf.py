"""MC-SF: the shortest predicted outputs first, as many as fit at every moment at which one of them ends."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.families.geometry import REQUEST, Shape, admit_by_peak, of_requests, of_server, queue_by_output
from baselines.families.keyed import KEYS, Keyed
from baselines.grids import TOKEN_BUDGETS
from baselines.parameters import Tokens
from engine.compiled.records import cells_of, params_of, record
from engine.server.moves import continue_prefills, decode_oldest_first
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import Memory, Plan, View


@dataclass(frozen=True)
class MCSF(Policy):
    """Everybody who runs goes on; newcomers by ascending predicted output while their KV fits until all have ended.

    The test of memory is LightLLM's: at every predicted end, what all hold by then stays below the capacity. In the
    paper an iteration is a unit of time and takes prompts of any length; chunks within a budget are ours, and that the
    youngest loses its KV where predictions were too low.
    """

    token_budget: Tokens = 2048
    """Tokens per iteration, decodes included."""

    name: ClassVar[str] = "mcsf"
    paper: ClassVar[str] = "MC-SF, arXiv 2502.07115"
    knows: ClassVar[str] = "output length, prompt length"
    prediction: ClassVar[str] = "oracle"
    eviction: ClassVar[str] = "none with true predictions, else youngest running request, recompute"
    evidence: ClassVar[str] = "rule as notes on the paper have it; chunks and evictions are ours"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(KEYS)
    space: ClassVar[Space] = {"token_budget": TOKEN_BUDGETS}


_params = record(params_of(MCSF))


@kernel_of(MCSF)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    requests, budget = of_requests(memory.request), int(_params(memory.params).token_budget)
    queue = Keyed(of_server(memory.row), requests.queued)
    shape = Shape(queue, requests, 1.0, min(budget, view.row[0].max_batched_tokens))
    queue_by_output(view, shape)
    last = decode_oldest_first(view, plan)
    continue_prefills(view, plan, last, shape.budget)
    if plan.draft[0].victims == 0:
        admit_by_peak(view, plan, shape, last)
