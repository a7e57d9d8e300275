"""The `allocation` action: how big the batch is, which decodes must run, which prompts come first.

Every combination is legal, so plain PPO works without masks. Sarathi-Serve, SLAI and vLLM are points or simple rules
in this space. The codec is an ordinary policy kernel that reads the choice from its memory: an environment writes the
learner's action there, a learned policy its own.

1. Decodes whose slack is below the chosen threshold run, oldest first; one that finds no free KV block evicts the
   youngest request that is not in the batch yet.
2. Prompt chunks in the chosen order until the token budget (decodes count) or the KV runs out.
3. Tokens left over in the budget go to the other decodes, oldest first, as long as blocks are free.
4. If that leaves the batch empty, all decodes run; if there are none, the smallest budget of prompt tokens.

With `slackfit` budgets the same three choices are the parameters of that baseline (`baselines.slackfit`): predicted
seconds of the batch (at most STRICT_LIMIT_S while a user of the strict tier decodes, else RELAXED_FACTOR as long), the
decode rule in units of them, and from which use of the KV blocks decodes run to free it; prompts go by shortest
remaining.
"""

from typing import Any, Literal

import numpy as np

from baselines._fill import (
    FILL_REQUEST_MEMORY,
    SPF,
    TAKEN,
    admit_chunks,
    fits_decode,
    is_decode,
    next_waiting,
    schedule_decode,
    take,
)
from baselines.families.filling import CLOCK_CELLS, fill_as_slackfit, profile_params, take_urgent
from engine.compiled.jit import hot, inner
from engine.device.latency import LatencyModel
from engine.server.kv import blocks_to_admit, tokens_left
from engine.server.plan import schedule
from engine.server.state import Memory, Plan, View
from llmsched_env.observation import OBSERVER_ROW_MEMORY, seen_before

TOKEN_LEVELS = (0, 64, 128, 256, 384, 512, 768, 1024, 2048)
"""Token budgets of an iteration (decodes included), multiples of a GeMM tile."""
TIME_LEVELS_S = (0.0, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2)
"""Alternative: predicted durations of an iteration, seconds."""
SLACKFIT_LIMITS_S = (0.05, 0.06, 0.07, 0.075, 0.08, 0.085, 0.09, 0.095, 0.1)
"""Alternative: predicted durations that slackfit fills, seconds."""
STRICT_LIMIT_S = 0.095
"""The longest of them while a user of the strict tier decodes."""
RELAXED_FACTOR = 1.5
"""While there is none, batches may be longer by this factor."""
SLACKFIT_MEMORY = ((0.3, 1.0), (0.45, 1.0), (0.6, 1.0), (0.75, 1.0))
"""Then instead of the order: slackfit's eager_from and memory_limit, shares of the KV blocks."""
SLACK_LEVELS = (float("inf"), 6.0, 4.0, 3.0, 2.0)
"""A decode must run if its slack is below this many batch times (inf: all decodes run)."""
SRPT = 3
ORDERS = ("fcfs", "spf", "strict_spf", "srpt")
"""Prefill orders; in srpt (shortest remaining prompt) a short newcomer overtakes a started prompt, which keeps KV."""

ACTION_SIZES = (len(TOKEN_LEVELS), len(SLACK_LEVELS), len(ORDERS))
"""Choices in each dimension: budget, decode rule, prefill order."""
ACTION_NAMES = ("token budget", "decode rule", "prefill order")
"""Dimensions of an action."""

_LEVELS, _SLACKS = 0, len(TOKEN_LEVELS)
_KIND, _OVERHEAD, _FLOOR, _PER_TOKEN, _PER_PAIR, _PER_CONTEXT = range(
    _SLACKS + len(SLACK_LEVELS), _SLACKS + len(SLACK_LEVELS) + 6
)
AGEING, CLOSE = _PER_CONTEXT + 1, _PER_CONTEXT + 2
"""Cells of the parameters with slackfit's ageing and close."""
_MEMORY = CLOSE + 1
ALLOCATION_PARAMS = _MEMORY + 2 * len(SLACKFIT_MEMORY)
"""Cells at the start of the parameters that belong to the codec."""
BUDGET, RULE, ORDER = range(OBSERVER_ROW_MEMORY, OBSERVER_ROW_MEMORY + 3)
"""Cells of the row memory that hold the choice: indices into the levels."""
_CLOCK = OBSERVER_ROW_MEMORY + 3
ALLOCATION_ROW_MEMORY = _CLOCK + CLOCK_CELLS
ALLOCATION_REQUEST_MEMORY = FILL_REQUEST_MEMORY

BudgetKind = Literal["tokens", "time", "slackfit"]
_LEVELS_OF = {"tokens": TOKEN_LEVELS, "time": TIME_LEVELS_S, "slackfit": SLACKFIT_LIMITS_S}


def allocation_params(model: LatencyModel, budget: BudgetKind, ageing: float = 0.0, close: float = 0.0) -> np.ndarray:
    """The codec's parameters: float64[ALLOCATION_PARAMS].

    Args:
        model: predicts the duration of a batch (for time budgets, and for the unit of the decode rule).
        budget: whether the levels are TOKEN_LEVELS, TIME_LEVELS_S or SLACKFIT_LIMITS_S.
        ageing: slackfit's (tokens/s).
        close: slackfit's.
    """
    kind = float(list(_LEVELS_OF).index(budget))
    memory = [share for shares in SLACKFIT_MEMORY for share in shares]
    return np.array(
        [*_LEVELS_OF[budget], *SLACK_LEVELS, kind, *profile_params(model), ageing, close, *memory], np.float64
    )


@inner
def _decode_context(view: View) -> int:
    total = 0
    for j in range(view.row[0].num_running):
        r = view.request[view.running[j]]
        if is_decode(r):
            total += r.length
    return total


@inner
def _budget_and_time(view: View, p: Any, choice: int) -> tuple[int, float]:
    """The chosen level as (tokens, predicted seconds)."""
    level = p[_LEVELS + choice]
    if p[_KIND] > 0.0:
        linear = level - p[_OVERHEAD] - p[_PER_CONTEXT] * _decode_context(view)
        return min(max(0, int(linear / p[_PER_TOKEN])), view.row[0].max_batched_tokens), level
    return min(int(level), view.row[0].max_batched_tokens), p[_OVERHEAD] + max(p[_FLOOR], p[_PER_TOKEN] * level)


@inner
def _take_shortest_remaining(
    view: View, memory: Memory, plan: Plan, victims: int, tokens: int, budget: int, free: int, active: int
) -> tuple[int, int]:
    """Chunks by shortest remaining prompt among started and waiting ones; returns (tokens, free blocks)."""
    row = view.row[0]
    stamp = row.iterations + 1
    taken, blocked = 0, False
    while tokens < budget:
        best, least = -1, 1 << 30
        if row.num_prefilling > 0:
            for j in range(row.num_running):
                i = view.running[j]
                r = view.request[i]
                if r.prompt - r.prefilled < least and not is_decode(r) and memory.request[i, TAKEN] != stamp:
                    best, least = i, r.prompt - r.prefilled
        started = best
        if not blocked:
            i = next_waiting(view, memory, SPF, victims, taken)
            if i >= 0 and memory.request[i, TAKEN] != stamp and view.request[i].prompt < least:
                best = i
        if best < 0:
            break
        r = view.request[best]
        if best != started:
            need = blocks_to_admit(r, row.block_size)
            if free - need < row.watermark_blocks or active >= row.max_num_seqs:
                blocked = True
                continue
            free -= need
            active += 1
            taken += 1
        chunk = min(tokens_left(r), budget - tokens)
        schedule(plan, best, chunk)
        take(view, memory, best)
        tokens += chunk
    return tokens, free


@inner
def _take_prompts(
    view: View, memory: Memory, plan: Plan, order: int, victims: int, tokens: int, budget: int, free: int
) -> tuple[int, int]:
    row = view.row[0]
    active = row.num_running - victims
    if order == SRPT:
        return _take_shortest_remaining(view, memory, plan, victims, tokens, budget, free, active)
    for j in range(row.num_running if row.num_prefilling > 0 else 0):
        i = view.running[j]
        r = view.request[i]
        if not is_decode(r) and tokens < budget and memory.request[i, TAKEN] != row.iterations + 1:
            chunk = min(r.prompt - r.prefilled, budget - tokens)
            schedule(plan, i, chunk)
            tokens += chunk
    if victims > 0:
        return tokens, free
    return admit_chunks(view, memory, plan, order, 0, tokens, budget, free, active)


@inner
def _take_leftover(view: View, memory: Memory, plan: Plan, room: int, free: int) -> None:
    row = view.row[0]
    stamp = row.iterations + 1
    for j in range(row.num_running):
        if room <= 0:
            break
        i = view.running[j]
        r = view.request[i]
        if is_decode(r) and memory.request[i, TAKEN] != stamp and fits_decode(row, r, free):
            free -= schedule_decode(plan, row, i, r)
            room -= 1


@hot
def allocate_batch(view: View, memory: Memory, plan: Plan) -> None:
    """Build the batch for the choice in the memory's cells BUDGET, RULE and ORDER (see the module docstring)."""
    row, p, m = view.row[0], memory.params, memory.row
    if p[_KIND] > 1.0:
        limit, at = p[_LEVELS + int(m[BUDGET])], _MEMORY + 2 * int(m[ORDER])
        relaxed, longest = RELAXED_FACTOR * limit, RELAXED_FACTOR * p[_SLACKS - 1]
        rules = p[_SLACKS + int(m[RULE])], p[at], p[at + 1], p[AGEING], p[CLOSE], 0.0
        fill_as_slackfit(view, memory, plan, _OVERHEAD, _CLOCK, min(limit, STRICT_LIMIT_S), relaxed, longest, *rules)
        return
    budget, seconds = _budget_and_time(view, p, int(m[BUDGET]))
    slack = p[_SLACKS + int(m[RULE])] * max(seen_before(memory).batch_time, seconds)
    order = int(m[ORDER])
    tokens, free, victims = take_urgent(view, memory, plan, slack, row.free_blocks, 0)
    if budget > tokens and row.num_waiting + row.num_prefilling > 0:
        tokens, free = _take_prompts(view, memory, plan, order, victims, tokens, budget, free)
    if budget > tokens:
        _take_leftover(view, memory, plan, budget - tokens, free)
    if plan.size[0] == victims:
        tokens, free, victims = take_urgent(view, memory, plan, np.inf, free, victims)
        if tokens == 0:
            _take_prompts(view, memory, plan, order, victims, 0, min(TOKEN_LEVELS[1], row.max_batched_tokens), free)
