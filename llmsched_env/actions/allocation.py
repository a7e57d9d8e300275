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
from baselines.families.filling import profile_params, take_urgent
from engine.compiled.jit import inner
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.server.kv import blocks_to_admit, tokens_left
from engine.server.plan import schedule
from engine.server.policy import HotKernel, Kernel
from engine.server.state import Memory, Plan, View
from llmsched_env.actions.action import LEVELS, Codec, cells_of, record
from llmsched_env.actions.queue_memory import queue_is_sound
from llmsched_env.observation import seen_before

TOKEN_LEVELS = (0, 64, 128, 256, 384, 512, 768, 1024, 2048)
"""Token budgets of an iteration (decodes included), multiples of a GeMM tile."""
TIME_LEVELS_S = (0.0, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2)
"""Alternative: predicted durations of an iteration, seconds."""
SLACK_LEVELS = (float("inf"), 6.0, 4.0, 3.0, 2.0)
"""A decode must run if its slack is below this many batch times (inf: all decodes run)."""
SRPT = 3
ORDERS = ("fcfs", "spf", "strict_spf", "srpt")
"""Prefill orders; in srpt (shortest remaining prompt) a short newcomer overtakes a started prompt, which keeps KV."""

PROFILE = record(*((name, "f8") for name in ("overhead", "floor", "per_token", "per_pair", "per_context")))
"""What a codec knows about its device (s)."""
PARAMS = record(
    ("budgets", "f8", (len(TOKEN_LEVELS),)),  # tokens, or s
    ("slacks", "f8", (len(SLACK_LEVELS),)),  # batch times
    ("timed", "f8"),  # whether budgets are seconds
    ("profile", PROFILE),
)
_CELLS = cells_of(PARAMS)
_BUDGET, _RULE, _ORDER = LEVELS, LEVELS + 1, LEVELS + 2


def profile_of(model: LatencyModel) -> dict[str, float]:
    """A device as the numbers of PROFILE (s)."""
    return dict(zip(PROFILE.names or (), profile_params(model), strict=True))


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
    level, profile = p.budgets[choice], p.profile
    if p.timed > 0.0:
        linear = level - profile.overhead - profile.per_context * _decode_context(view)
        return min(max(0, int(linear / profile.per_token)), view.row[0].max_batched_tokens), level
    seconds = profile.overhead + max(profile.floor, profile.per_token * level)
    return min(int(level), view.row[0].max_batched_tokens), seconds


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


@HotKernel
def allocate_batch(view: View, memory: Memory, plan: Plan) -> None:
    """Build the batch for the levels in the memory (see the module docstring)."""
    row, p, m = view.row[0], memory.params[:_CELLS].view(PARAMS)[0], memory.row
    budget, seconds = _budget_and_time(view, p, int(m[_BUDGET]))
    slack = p.slacks[int(m[_RULE])] * max(seen_before(memory).batch_time, seconds)
    order = int(m[_ORDER])
    tokens, free, victims = take_urgent(view, memory, plan, slack, row.free_blocks, 0)
    if budget > tokens and row.num_waiting + row.num_prefilling > 0:
        tokens, free = _take_prompts(view, memory, plan, order, victims, tokens, budget, free)
    if budget > tokens:
        _take_leftover(view, memory, plan, budget - tokens, free)
    if plan.size[0] == victims:
        tokens, free, victims = take_urgent(view, memory, plan, np.inf, free, victims)
        if tokens == 0:
            _take_prompts(view, memory, plan, order, victims, 0, min(TOKEN_LEVELS[1], row.max_batched_tokens), free)


@dataclass(frozen=True)
class Allocation(Codec):
    """Batch size x decode rule x prefill order."""

    name: ClassVar[str] = "allocation"
    PARAMS: ClassVar[np.dtype] = PARAMS
    ENDLESS: ClassVar[tuple[str, ...]] = ("slacks",)
    kernel: ClassVar[Kernel] = allocate_batch
    request_memory: ClassVar[int] = FILL_REQUEST_MEMORY
    own_cells: ClassVar[int] = 0
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
        return {"budgets": budgets, "slacks": SLACK_LEVELS, "timed": float(timed), "profile": profile_of(model)}

    def is_sound(self, cells: np.ndarray, request: np.ndarray) -> bool:
        """Whether the memory of the queue is in range."""
        return bool(queue_is_sound(cells, request))

    def check_params(self, params: np.ndarray) -> None:
        """Check parameters that come from a file.

        Raises:
            InputError: numbers that no codec of this kind has.
        """
        super().check_params(params)
        p = params.view(PARAMS)[0]
        if p["timed"] != float(self.budget == "time"):
            raise InputError(f"codec: expected the budgets of {self.budget!r}, got kind {p['timed']:g}")
        if p["timed"] > 0.0 and p["profile"]["per_token"] <= 0.0:
            raise InputError("codec: expected a device on which a token takes time")
