"""A_min: believe the lower end of a predicted interval, and learn from running out of memory."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.families.geometry import REQUEST, Shape, admit_by_peak, of_requests, of_server, queue_by_output
from baselines.families.keyed import KEYS, Keyed
from baselines.grids import TOKEN_BUDGETS
from baselines.parameters import ShareFrom0, Tokens
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record
from engine.server.kv import decode_need
from engine.server.moves import chunk, decode, fits_decode, is_decode, take_kv
from engine.server.plan import is_named, name
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import Memory, Plan, View


@dataclass(frozen=True)
class AMin(Policy):
    """As `mcsf` with the lower end of each predicted output; where KV runs out, the least output produced goes first.

    Who loses its KV is believed to need at least what it has produced from then on. The interval goes from a share of
    the prediction to the prediction (share=1 believes the upper end, A_max); that and chunks within a budget are ours,
    and that an evicted request keeps its output: in the paper it begins anew.
    """

    share: ShareFrom0 = 0.5
    """Share of the prediction that is the lower end."""
    token_budget: Tokens = 2048
    """Tokens per iteration, decodes included."""

    name: ClassVar[str] = "amin"
    paper: ClassVar[str] = "A_min, arXiv 2508.14544"
    knows: ClassVar[str] = "an interval of the output length, prompt length"
    prediction: ClassVar[str] = "oracle"
    eviction: ClassVar[str] = "fewest output tokens produced, recompute"
    evidence: ClassVar[str] = "rule as public notes on the paper have it; intervals, chunks and kept outputs are ours"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(KEYS)
    space: ClassVar[Space] = {"share": (0.1, 0.25, 0.5, 0.75, 1.0), "token_budget": TOKEN_BUDGETS}


_params = record(params_of(AMin))


@inner
def _least_produced(view: View, plan: Plan) -> int:
    """The running request with the fewest output tokens, the last of equals, that the plan has not touched."""
    best = -1
    for j in range(view.row[0].num_running):
        i = view.running[j]
        if not is_named(plan, i) and (best < 0 or view.request[i].generated <= view.request[best].generated):
            best = i
    return best


@inner
def _make_room(view: View, plan: Plan, shape: Shape) -> None:
    """Take KV until every decode that is left finds a block."""
    row, draft, need, left = view.row[0], plan.draft[0], view.row[0].decode_needs_free_block, view.row[0].num_running
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        need += decode_need(r, row.block_size) if is_decode(r) else 0
    while need > draft.free and left > 1:
        i = _least_produced(view, plan)
        r = view.request[i]
        need -= decode_need(r, row.block_size) if is_decode(r) else 0
        shape.request[i].raised = r.generated
        name(plan, i)
        take_kv(view, plan, i)
        left -= 1


@inner
def _go_on(view: View, plan: Plan, budget: int) -> None:
    """Decodes and then started prompts of those whom the plan has left their KV."""
    row, draft = view.row[0], plan.draft[0]
    for j in range(row.num_running):
        i = view.running[j]
        mine = is_decode(view.request[i]) and not is_named(plan, i) and draft.tokens < row.max_batched_tokens
        if mine and fits_decode(view, plan, i):
            decode(view, plan, i)
    for j in range(row.num_running):
        i = view.running[j]
        if not is_decode(view.request[i]) and not is_named(plan, i) and draft.tokens < budget:
            chunk(view, plan, i, budget - draft.tokens)


@kernel_of(AMin)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, requests, row = _params(memory.params), of_requests(memory.request), view.row[0]
    queue = Keyed(of_server(memory.row), requests.queued)
    shape = Shape(queue, requests, p.share, min(int(p.token_budget), row.max_batched_tokens))
    queue_by_output(view, shape)
    _make_room(view, plan, shape)
    _go_on(view, plan, shape.budget)
    if plan.draft[0].victims == 0:
        admit_by_peak(view, plan, shape, row.num_running)
