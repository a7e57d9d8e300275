"""The `allocation` action: how big the batch is, which decodes must run, which prompts come first.

Every combination is legal, so plain PPO works without masks. Sarathi-Serve, SLAI and vLLM are points or simple rules
in this space.

1. Decodes whose slack is below the chosen threshold run, oldest first; one that finds no free KV block evicts the
   youngest request that is not in the batch yet.
2. Prompt chunks in the chosen order until the token budget (decodes count) or the KV runs out.
3. Tokens left over in the budget go to the other decodes, oldest first, as long as blocks are free.
4. If that leaves the batch empty, all decodes run; if there are none, the smallest budget of prompt tokens.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from baselines.families.durations import all_decodes
from baselines.families.urgent import take_urgent
from engine.compiled.jit import inner
from engine.compiled.records import record, records
from engine.device.latency import LatencyModel
from engine.device.predicting import DEVICE, largest, linear
from engine.errors import InputError
from engine.server.moves import admit, admit_chunks, chunk, decode, fits_decode, is_decode
from engine.server.plan import is_named
from engine.server.policy import HotKernel, Kernel
from engine.server.queue import QUEUE, QUEUED, SPF, Queue, next_waiting
from engine.server.state import Memory, Plan, View
from llmsched_env.actions.action import PROFILE
from llmsched_env.actions.queue_memory import QueueCodec
from llmsched_env.observation import SEEN

TOKEN_LEVELS = (0, 64, 128, 256, 384, 512, 768, 1024, 2048)
"""Token budgets of an iteration (decodes included), multiples of a GeMM tile."""
TIME_LEVELS_S = (0.0, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2)
"""Alternative: predicted durations of an iteration, seconds."""
SLACK_LEVELS = (float("inf"), 6.0, 4.0, 3.0, 2.0)
"""A decode must run if its slack is below this many batch times (inf: all decodes run)."""
SRPT = 3
ORDERS = ("fcfs", "spf", "strict_spf", "srpt")
"""Prefill orders; in srpt (shortest remaining prompt) a short newcomer overtakes a started prompt, which keeps KV."""

PARAMS = np.dtype(
    [
        (PROFILE, DEVICE),
        ("budgets", "f8", (len(TOKEN_LEVELS),)),  # tokens, or s
        ("slacks", "f8", (len(SLACK_LEVELS),)),  # batch times
        ("timed", "f8"),  # whether budgets are seconds
    ],
    align=True,
)
MEMORY = np.dtype(
    [
        ("seen", SEEN),
        ("budget", "f8"),  # index of the present choice in the budgets
        ("rule", "f8"),  # in SLACK_LEVELS
        ("order", "f8"),  # in ORDERS
        ("queue", QUEUE),
    ],
    align=True,
)
"""What is remembered of the server."""
_params, _memory, _requests = record(PARAMS), record(MEMORY), records(QUEUED)


@inner
def _budget_and_time(view: View, p: np.record, choice: int) -> tuple[int, float]:
    """The chosen level as (tokens, predicted seconds)."""
    row, level, device = view.row[0], p.budgets[choice], p.profile
    if p.timed > 0.0:
        decodes = all_decodes(view)
        taken = int(decodes.tokens)
        return taken + largest(device, decodes, 0.0, row.max_batched_tokens - taken, level), level
    return min(int(level), row.max_batched_tokens), device.overhead + linear(device, level)


@inner
def _shortest_started(view: View, plan: Plan) -> int:
    """The started prompt with the fewest tokens left that this plan has not taken; -1: there is none."""
    row = view.row[0]
    best, least = -1, 1 << 30
    for j in range(row.num_running if row.num_prefilling > 0 else 0):
        i = view.running[j]
        r = view.request[i]
        if r.prompt - r.prefilled < least and not is_decode(r) and not is_named(plan, i):
            best, least = i, r.prompt - r.prefilled
    return best


@inner
def _shortest_remaining(view: View, plan: Plan, queue: Queue, started: int) -> int:
    """The waiting request with a prompt shorter than what `started` lacks, else `started`; -1: there is neither."""
    i = next_waiting(view, plan, queue, SPF)
    if i < 0 or is_named(plan, i):
        return started
    if started >= 0:
        s = view.request[started]
        if view.request[i].prompt >= s.prompt - s.prefilled:
            return started
    return i


@inner
def _take_shortest_remaining(view: View, plan: Plan, queue: Queue, budget: int) -> None:
    """Chunks by shortest remaining prompt among started and waiting ones."""
    draft, blocked = plan.draft[0], False
    while draft.tokens < budget:
        started = _shortest_started(view, plan)
        best = started if blocked else _shortest_remaining(view, plan, queue, started)
        if best < 0:
            break
        if best == started:
            chunk(view, plan, best, budget - draft.tokens)
        elif not admit(view, plan, best, budget - draft.tokens):
            blocked = True


@inner
def _take_prompts(view: View, plan: Plan, queue: Queue, order: int, budget: int) -> None:
    """Chunks in an order of ORDERS, up to a budget of tokens."""
    row, draft = view.row[0], plan.draft[0]
    if order == SRPT:
        _take_shortest_remaining(view, plan, queue, budget)
        return
    for j in range(row.num_running if row.num_prefilling > 0 else 0):
        i = view.running[j]
        if not is_decode(view.request[i]) and draft.tokens < budget and not is_named(plan, i):
            chunk(view, plan, i, budget - draft.tokens)
    if draft.victims == 0:
        admit_chunks(view, plan, queue, order, budget)


@inner
def _take_leftover(view: View, plan: Plan, budget: int) -> None:
    """Decodes that could wait, oldest first, as far as tokens and KV last."""
    row, draft = view.row[0], plan.draft[0]
    for j in range(row.num_running):
        if draft.tokens >= budget:
            break
        i = view.running[j]
        if is_decode(view.request[i]) and not is_named(plan, i) and fits_decode(view, plan, i):
            decode(view, plan, i)


@HotKernel
def allocate_batch(view: View, memory: Memory, plan: Plan) -> None:
    """Build the batch for the levels in the memory (see the module docstring)."""
    row, draft, p, m = view.row[0], plan.draft[0], _params(memory.params), _memory(memory.row)
    queue, order = Queue(m.queue, _requests(memory.request)), int(m.order)
    budget, seconds = _budget_and_time(view, p, int(m.budget))
    take_urgent(view, plan, p.slacks[int(m.rule)] * max(m.seen.batch_time, seconds))
    if budget > draft.tokens and row.num_waiting + row.num_prefilling > 0:
        _take_prompts(view, plan, queue, order, budget)
    if budget > draft.tokens:
        _take_leftover(view, plan, budget)
    if plan.size[0] == draft.victims:
        take_urgent(view, plan, np.inf)
        if draft.tokens == 0:
            _take_prompts(view, plan, queue, order, min(TOKEN_LEVELS[1], row.max_batched_tokens))


@dataclass(frozen=True)
class Allocation(QueueCodec):
    """Batch size x decode rule x prefill order."""

    name: ClassVar[str] = "allocation"
    PARAMS: ClassVar[np.dtype] = PARAMS
    ENDLESS: ClassVar[tuple[str, ...]] = ("slacks",)
    kernel: ClassVar[Kernel] = allocate_batch
    DECODES: ClassVar[tuple[int, ...]] = (0, 0, 0)
    FALLBACK: ClassVar[tuple[int, ...]] = (TOKEN_LEVELS.index(512), 0, 0)

    budget: Literal["tokens", "time"] = "tokens"
    """Whether batch sizes are in tokens or in predicted seconds."""

    @property
    def heads(self) -> dict[str, int]:
        """Batch size, decode rule, prompt order."""
        return {"budget": len(TOKEN_LEVELS), "decode_rule": len(SLACK_LEVELS), "prefill_order": len(ORDERS)}

    def named(self, model: LatencyModel) -> dict[str, Any]:
        """The kernel's parameters by name."""
        timed = self.budget == "time"
        budgets = TIME_LEVELS_S if timed else TOKEN_LEVELS
        return {"budgets": budgets, "slacks": SLACK_LEVELS, "timed": float(timed)}

    def check_params(self, params: np.ndarray) -> None:
        """Check parameters that come from a file.

        Raises:
            InputError: numbers that no codec of this kind has.
        """
        super().check_params(params)
        p = params.view(PARAMS)[0]
        if p["timed"] != float(self.budget == "time"):
            raise InputError(f"codec: expected the budgets of {self.budget!r}, got kind {p['timed']:g}")
