"""SLAI: last schedulable times for decodes, prefill in the slack (arXiv 2508.01002)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from baselines.grids import TOKEN_BUDGETS
from baselines.parameters import NumberFrom0, Requests, ShareFrom0, Tokens
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.moves import (
    admit_chunks,
    continue_prefills,
    decode,
    fits_decode,
    is_decode,
    take_kv,
)
from engine.server.policy import Policy, Space, kernel_of
from engine.server.queue import FCFS, QUEUE, QUEUED, SPF, STRICT_SPF, Queue
from engine.server.sorting import SORTED, insert_sorted
from engine.server.state import Memory, Plan, View

SEEN = np.dtype(
    [
        ("queue", QUEUE),
        ("batches", "f8"),  # iterations counted
        ("mean_s", "f8"),  # mean of their durations, s
    ],
    align=True,
)
"""What SLAI remembers of the server."""

DECODE = np.dtype([("queue", QUEUED), ("lst", SORTED)], align=True)
"""What it remembers of a request: its key is the last schedulable time of its next decode, s."""


@dataclass(frozen=True)
class SLAI(Policy):
    """Decodes wait until their last schedulable time (LST) unless budget is left; prompts use the time between.

    LST = end of the last batch + TBT deadline - offset x mean batch duration. A batch takes critical decodes (past
    their LST), started prompts, new prompts, then the other decodes. Code: agrimUT/SLAI
    sarathi/core/scheduler/slai_scheduler.py, commit 5098a7a. A decode that finds no free block evicts the started
    prompt queued last, else itself; it never evicts another decode.
    """

    token_budget: Tokens = 512
    """Tokens per iteration."""
    order: Literal["fcfs", "spf", "strict_spf"] = "strict_spf"
    """Order of the waiting queue: fcfs, spf, or strict_spf (paying users first: the paper's user priority)."""
    offset: NumberFrom0 = 5.0
    """Mean batch durations that the LST lies before the deadline."""
    pressure_offset: NumberFrom0 = 10.0
    """The same while KV use is at or above memory_limit (the paper's dynamic offset)."""
    memory_limit: ShareFrom0 = 0.96
    """Share of the KV blocks in use from which pressure_offset holds."""
    fixed_offset: bool = False
    """Always use offset."""
    max_decodes: Requests = 128
    """Decodes per iteration."""

    name: ClassVar[str] = "slai"
    paper: ClassVar[str] = "SLAI, SIGMETRICS 2026, arXiv 2508.01002"
    knows: ClassVar[str] = "prompt length, tier, batch times"
    eviction: ClassVar[str] = "started prefill, else the decode itself, recompute"
    evidence: ClassVar[str] = "public code, replayed step by step"
    request_memory: ClassVar[int] = cells_of(DECODE)
    row_memory: ClassVar[int] = cells_of(SEEN)
    space: ClassVar[Space] = {
        "token_budget": TOKEN_BUDGETS,
        "order": ("fcfs", "spf", "strict_spf"),
        "offset": (1.0, 2.0, 3.0, 5.0, 7.0),
        "pressure_offset": (2.0, 5.0, 10.0, 20.0),
        "memory_limit": (0.6, 0.7, 0.8, 0.9, 0.96),
    }

    def encode(self, name: str, value: Any) -> float:
        """The order as the number that the kernel compares."""
        return float({"fcfs": FCFS, "spf": SPF, "strict_spf": STRICT_SPF}[value] if name == "order" else value)


_params, _seen, _decodes = record(params_of(SLAI)), record(SEEN), records(DECODE)


@inner
def _update_deadlines(view: View, memory: Memory) -> tuple[int, int]:
    """Give each decode of the previous batch its LST = now + deadline - offset x mean batch duration.

    Returns:
        (decodes past their LST, other decodes).
    """
    row, p, seen, lst = view.row[0], _params(memory.params), _seen(memory.row), _decodes(memory.request).lst
    if row.iterations > seen.batches:
        seen.batches += 1.0
        seen.mean_s += (row.last_duration - seen.mean_s) / seen.batches
    under_pressure = (row.num_blocks - row.free_blocks) / row.num_blocks >= p.memory_limit
    offset = p.pressure_offset if under_pressure and not p.fixed_offset else p.offset
    lead, now, previous = offset * seen.mean_s, row.now, row.iterations - 1
    critical, rest = 0, 0
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if is_decode(r):
            if r.last_run == previous:
                lst[i].key = now + r.tbt - lead
            if now >= lst[i].key:
                critical += 1
            else:
                rest += 1
    return critical, rest


@inner
def _sort(view: View, lst: np.ndarray, critical: bool) -> int:
    """List the decodes on one side of their LST by (LST, arrival); returns how many."""
    row = view.row[0]
    n = 0
    for j in range(row.num_running):
        i = view.running[j]
        if is_decode(view.request[i]) and (row.now >= lst[i].key) == critical:
            insert_sorted(lst, n, i)
            n += 1
    return n


@inner
def _take_critical(view: View, plan: Plan, lst: np.ndarray, limit: int) -> int:
    """Critical decodes in order, taking KV for them: of the last started prefill first, else of the decode itself.

    Returns:
        Started prefills are those among so many of `running`.
    """
    last, draft = view.row[0].num_running, plan.draft[0]
    for k in range(_sort(view, lst, True)):
        if draft.tokens >= limit:
            break
        i = lst[k].listed
        fits = fits_decode(view, plan, i)
        while not fits:
            while last > 0 and is_decode(view.request[view.running[last - 1]]):
                last -= 1
            if last == 0:
                take_kv(view, plan, i)
                break
            last -= 1
            take_kv(view, plan, view.running[last])
            fits = fits_decode(view, plan, i)
        if fits:
            decode(view, plan, i)
    return last


@inner
def _take_rest(view: View, plan: Plan, lst: np.ndarray, room: int) -> None:
    """Non-critical decodes in order while there is room; one that finds no block evicts itself."""
    for k in range(_sort(view, lst, False)):
        if room == 0:
            break
        i = lst[k].listed
        if fits_decode(view, plan, i):
            decode(view, plan, i)
            room -= 1
        else:
            take_kv(view, plan, i)


@inner
def _take_all(view: View, plan: Plan, lst: np.ndarray, critical: bool) -> None:
    """Every decode on one side of its LST; for when neither blocks nor the budget can run out."""
    row = view.row[0]
    for j in range(row.num_running):
        i = view.running[j]
        if is_decode(view.request[i]) and (row.now >= lst[i].key) == critical:
            decode(view, plan, i)


@kernel_of(SLAI)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, p, draft = view.row[0], _params(memory.params), plan.draft[0]
    requests = _decodes(memory.request)
    queue, lst, last = Queue(_seen(memory.row).queue, requests.queue), requests.lst, row.num_running
    budget, max_decodes = min(int(p.token_budget), row.max_batched_tokens), int(p.max_decodes)
    critical, rest = _update_deadlines(view, memory)
    limit = min(budget, max_decodes)
    if critical <= limit and critical <= draft.free:
        _take_all(view, plan, lst, True)
    else:
        last = _take_critical(view, plan, lst, limit)
    decodes = draft.tokens
    continue_prefills(view, plan, last, budget)
    admit_chunks(view, plan, queue, int(p.order), budget)
    room = min(budget - draft.tokens, max_decodes - decodes)
    if rest <= min(room, draft.free):
        _take_all(view, plan, lst, False)
    elif room > 0:
        _take_rest(view, plan, lst, room)
