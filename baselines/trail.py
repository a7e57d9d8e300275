"""TRAIL: shortest predicted remaining output first, with preemption only early in a request's life."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from baselines._fill import (
    FILL_REQUEST_MEMORY,
    TAKEN,
    continue_prefills,
    is_decode,
    schedule_decode,
    take,
    take_decodes_oldest_first,
)
from baselines.families.heap import HEAP_COLUMNS, HEAP_KEY, TIE, put, take_out
from baselines.grids import BATCH_CAPS, TOKEN_BUDGETS
from baselines.parameters import MarginTokens, Requests, ShareFrom0, TimesFrom0, Tokens
from engine.compiled.jit import inner
from engine.server.kv import blocks_to_admit, decode_need, tokens_left
from engine.server.moves import remaining
from engine.server.plan import drop, evict, schedule
from engine.server.policy import HotKernel, Kernel, Policy, Space
from engine.server.state import WAITING, Memory, Plan, View

TOKEN_BUDGET, BATCH_CAP, WINDOW, MARGIN, MAX_PREEMPTIONS, PROTECT = range(6)

FIRST, PREEMPTED, ADMITTED, LEFT, HEAP = range(FILL_REQUEST_MEMORY, FILL_REQUEST_MEMORY + 5)
TRAIL_REQUEST_MEMORY = HEAP + HEAP_COLUMNS
"""Columns: first prediction (tokens), times preempted, list of the requests that the present plan admits, list of those
that the last plans took from the queue, heap of the queue by rank."""
SEEN_ARRIVALS, SEEN_LOST, NUM_HEAPED, NUM_LEFT, TRAIL_ROW_MEMORY = range(5)


@inner
def is_young(memory: Memory, i: int, r: Any) -> bool:
    """Whether request `i` may still be preempted: no more than a share c of its first prediction is generated."""
    return bool(r.generated <= memory.params[WINDOW] * memory.request[i, FIRST])


@inner
def _rank(row: Any, memory: Memory, i: int, r: Any) -> float:
    """Place in the queue, the smallest first."""
    if is_young(memory, i, r) or r.generated == 0:
        return remaining(row, r)
    return -1.0 if memory.params[PROTECT] else np.inf


@inner
def _queue_up(view: View, memory: Memory, i: int) -> None:
    """Put a request that waits into the heap, at its present place."""
    cells, m, r = memory.request, memory.row, view.request[i]
    if r.status == WAITING:
        cells[i, HEAP + HEAP_KEY], cells[i, HEAP + TIE] = _rank(view.row[0], memory, i, r), i
        m[NUM_HEAPED] = put(cells, HEAP, int(m[NUM_HEAPED]), i)


@inner
def _leave(memory: Memory, i: int) -> None:
    """Take request `i` out of the heap and remember it for the next plan: what is planned need not happen."""
    cells, m = memory.request, memory.row
    m[NUM_HEAPED] = take_out(cells, HEAP, int(m[NUM_HEAPED]), i)
    if m[NUM_LEFT] < cells.shape[0]:
        cells[int(m[NUM_LEFT]), LEFT] = i
        m[NUM_LEFT] += 1.0


@inner
def _note_newcomers(view: View, memory: Memory) -> None:
    """Queue up new arrivals, who has lost its KV (they stand at the head of the queue), and who was not served."""
    cells, m, row = memory.request, memory.row, view.row[0]
    lost = row.evictions + row.swaps
    for k in range(min(lost - int(m[SEEN_LOST]), row.num_waiting)):
        _queue_up(view, memory, view.queue[k])
    for i in range(int(m[SEEN_ARRIVALS]), row.next_arrival):
        cells[i, FIRST] = max(1.0, view.request[i].prediction)
        _queue_up(view, memory, i)
    m[SEEN_ARRIVALS], m[SEEN_LOST] = row.next_arrival, lost
    left, m[NUM_LEFT] = int(m[NUM_LEFT]), 0.0
    for k in range(left):
        i = int(cells[k, LEFT])
        if cells[i, TAKEN] == row.iterations + 1:
            _leave(memory, i)
        else:
            _queue_up(view, memory, i)


@inner
def _next(view: View, memory: Memory) -> int:
    """The waiting request of the smallest rank (ties: arrival) that this plan has not taken yet; -1 if none is left."""
    cells, m, row = memory.request, memory.row, view.row[0]
    while m[NUM_HEAPED] > 0.0:
        i = int(cells[0, HEAP])
        if view.request[i].status == WAITING and cells[i, TAKEN] != row.iterations + 1:
            return i
        _leave(memory, i)
    return -1


@inner
def _victim(view: View, memory: Memory, rank: float, blocks: int) -> int:
    """The young decode of the largest rank above `rank` + margin that holds at least `blocks` blocks; -1 if none."""
    row, p, best, most = view.row[0], memory.params, -1, rank + memory.params[MARGIN]
    for k in range(row.num_running):
        i = view.running[k]
        r = view.request[i]
        spent = p[MAX_PREEMPTIONS] > 0.0 and memory.request[i, PREEMPTED] >= p[MAX_PREEMPTIONS]
        if not is_decode(r) or not is_young(memory, i, r) or spent or memory.request[i, TAKEN] == row.iterations + 1:
            continue
        left = remaining(row, r)
        if r.blocks >= blocks and (left > most or (left == most and best >= 0)):
            best, most = i, left
    return best


@inner
def _admit(view: View, memory: Memory, plan: Plan, room: int, free: int) -> int:
    """Choose who is admitted, at most `room` prompt tokens, and evict who makes way; returns how many are admitted."""
    row, n, active = view.row[0], 0, view.row[0].num_running
    cap = min(int(memory.params[BATCH_CAP]), row.max_num_seqs)
    while room > 0:
        i = _next(view, memory)
        if i < 0:
            break
        r = view.request[i]
        if r.prompt > row.max_model_len:
            drop(plan, i)
            take(view, memory, i)
            continue
        need = blocks_to_admit(r, row.block_size)
        missing = need + row.watermark_blocks - free
        if missing > 0 or active >= cap:
            v = _victim(view, memory, _rank(row, memory, i, r), missing)
            if v < 0:
                break
            evict(plan, v)
            take(view, memory, v)
            memory.request[v, PREEMPTED] += 1.0
            free += view.request[v].blocks
            active -= 1
        take(view, memory, i)
        memory.request[n, ADMITTED] = i
        n += 1
        active += 1
        free -= need
        room -= tokens_left(r)
    return n


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, budget = view.row[0], min(int(memory.params[TOKEN_BUDGET]), view.row[0].max_batched_tokens)
    _note_newcomers(view, memory)
    need, room = 0, budget
    for k in range(row.num_running):
        r = view.request[view.running[k]]
        room -= tokens_left(r)
        if is_decode(r):
            need += decode_need(r, row.block_size)
    if need + row.decode_needs_free_block * (row.num_running > 0) > row.free_blocks:
        tokens, _, _, last = take_decodes_oldest_first(view, memory, plan)
        continue_prefills(view, plan, last, tokens, budget)
        return
    n = _admit(view, memory, plan, room, row.free_blocks - need)
    tokens = 0
    for k in range(row.num_running):
        i = view.running[k]
        if is_decode(view.request[i]) and memory.request[i, TAKEN] != row.iterations + 1:
            schedule_decode(plan, row, i, view.request[i])
            tokens += 1
    tokens = continue_prefills(view, plan, row.num_running, tokens, budget)
    for k in range(n):
        i = int(memory.request[k, ADMITTED])
        chunk = min(tokens_left(view.request[i]), budget - tokens)
        schedule(plan, i, chunk)
        tokens += chunk


@dataclass(frozen=True)
class TRAIL(Policy):
    """Waiting requests by predicted remaining output; one that finds the server full may take the place of a longer.

    Only requests that have generated at most c times their first prediction can lose their place; for others nothing
    changes until they are done. Code: harvard-cns/TRAIL-llm-scheduling 3c4bcd6, a patch of SGLang. There the KV of a
    victim stays in the prefix cache until it is needed; here, as in the paper's vLLM version, it is recomputed. Prompts
    come in chunks beside the decodes, and a server is also full when its KV is; a decode that finds no block takes
    that of the youngest running request.
    """

    token_budget: Tokens = 512
    """Tokens per iteration, decodes included."""
    batch_cap: Requests = 48
    """Requests that hold KV at the same time (the cap of the released benchmark; max_num_seqs also applies)."""
    c: ShareFrom0 = 0.8
    """Share of the first prediction up to which a request can be preempted (0: never; the released launcher's)."""
    margin: MarginTokens = 0.0
    """Tokens by which a victim must be longer than who takes its place."""
    max_preemptions: TimesFrom0 = 0
    """Times that a request can be preempted (0: no limit)."""
    protect_requeued: bool = False
    """A request that loses its KV after that share goes to the front of the queue instead of its end."""

    name: ClassVar[str] = "trail"
    paper: ClassVar[str] = "TRAIL, arXiv 2410.01035"
    knows: ClassVar[str] = "remaining output, refined while decoding"
    prediction: ClassVar[str] = "refined"
    eviction: ClassVar[str] = "most output left, only while young; youngest under memory pressure; recompute"
    evidence: ClassVar[str] = "public code (SGLang patch); chunks and recompute are ours"
    request_memory: ClassVar[int] = TRAIL_REQUEST_MEMORY
    row_memory: ClassVar[int] = TRAIL_ROW_MEMORY
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {"token_budget": TOKEN_BUDGETS, "batch_cap": BATCH_CAPS, "c": (0.0, 0.5, 0.8, 1.0)}
