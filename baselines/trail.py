"""TRAIL: shortest predicted remaining output first, with preemption only early in a request's life."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from baselines.grids import BATCH_CAPS, TOKEN_BUDGETS
from baselines.parameters import MarginTokens, Requests, ShareFrom0, TimesFrom0, Tokens
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.kv import blocks_to_admit, decode_need, tokens_left
from engine.server.members import SEEN, look_at_queue
from engine.server.moves import (
    continue_prefills,
    decode,
    decode_oldest_first,
    enter,
    is_decode,
    remaining,
    take_kv,
)
from engine.server.plan import drop, is_named, name
from engine.server.policy import Policy, Space, kernel_of
from engine.server.sorting import HEAP, put, take_out
from engine.server.state import WAITING, Memory, Plan, View

SERVER = np.dtype(
    [
        ("seen", SEEN),
        ("heaped", "i8"),  # requests in the heap
        ("gone", "i8"),  # requests that the last plan took from the heap
    ],
    align=True,
)
"""What TRAIL remembers of the server."""

REQUEST = np.dtype(
    [
        ("first", "f8"),  # first prediction, tokens
        ("preempted", "i8"),  # times
        ("chosen", "i8"),  # of line k: the k-th request that the present plan admits
        ("gone", "i8"),  # of line k: the k-th request that the last plan took from the heap
        ("heap", HEAP),  # the queue by rank
    ],
    align=True,
)
"""What it remembers of a request."""


class Trail(NamedTuple):
    """Parameters and memory."""

    p: Any  # the parameters
    row: Any  # SERVER
    request: Any  # REQUEST[requests]


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
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(SERVER)
    space: ClassVar[Space] = {"token_budget": TOKEN_BUDGETS, "batch_cap": BATCH_CAPS, "c": (0.0, 0.5, 0.8, 1.0)}


_params, _server, _requests = record(params_of(TRAIL)), record(SERVER), records(REQUEST)


@inner
def is_young(trail: Trail, i: int, r: np.record) -> bool:
    """Whether request `i` may still be preempted: no more than a share c of its first prediction is generated."""
    return bool(r.generated <= trail.p.c * trail.request[i].first)


@inner
def _rank(row: np.record, trail: Trail, i: int, r: np.record) -> float:
    """Place in the queue, the smallest first."""
    if is_young(trail, i, r) or r.generated == 0:
        return float(remaining(row, r))
    return -1.0 if trail.p.protect_requeued else np.inf


@inner
def _queue_up(view: View, trail: Trail, i: int) -> None:
    """Put a request that waits into the heap, at its present place."""
    r, h = view.request[i], trail.request.heap[i]
    if r.status == WAITING:
        h.key, h.tie = _rank(view.row[0], trail, i, r), i
        trail.row.heaped = put(trail.request.heap, trail.row.heaped, i)


@inner
def _note_newcomers(view: View, trail: Trail) -> None:
    """Queue up new arrivals, who has lost its KV (they stand at the head of the queue), and who was not served."""
    m, lines = trail.row, trail.request
    lost, first = look_at_queue(view, m.seen)
    for k in range(lost):
        _queue_up(view, trail, view.queue[k])
    for i in range(first, view.row[0].next_arrival):
        lines[i].first = max(1.0, view.request[i].prediction)
        _queue_up(view, trail, i)
    for k in range(m.gone):
        _queue_up(view, trail, lines[k].gone)
    m.gone = 0


@inner
def _next(view: View, plan: Plan, trail: Trail) -> int:
    """The waiting request of the smallest rank (ties: arrival) that this plan has not taken yet; -1 if none is left.

    Who is taken out of the heap is remembered for the next plan: what is planned need not happen.
    """
    m, lines = trail.row, trail.request
    while m.heaped > 0:
        i = lines[0].heap.listed
        if view.request[i].status == WAITING and not is_named(plan, i):
            return i
        m.heaped = take_out(lines.heap, m.heaped, i)
        if m.gone < lines.shape[0]:
            lines[m.gone].gone = i
            m.gone += 1
    return -1


@inner
def _victim(view: View, plan: Plan, trail: Trail, rank: float, blocks: int) -> int:
    """The young decode of the largest rank above `rank` + margin that holds at least `blocks` blocks; -1 if none."""
    row, p, best, most = view.row[0], trail.p, -1, rank + trail.p.margin
    for k in range(row.num_running):
        i = view.running[k]
        r = view.request[i]
        spent = p.max_preemptions > 0.0 and trail.request[i].preempted >= p.max_preemptions
        if not is_decode(r) or not is_young(trail, i, r) or spent or is_named(plan, i):
            continue
        left = remaining(row, r)
        if r.blocks >= blocks and (left > most or (left == most and best >= 0)):
            best, most = i, left
    return best


@inner
def _choose(view: View, plan: Plan, trail: Trail, room: int, blocks: int) -> int:
    """Choose who is admitted, at most `room` prompt tokens, and take the KV of who makes way.

    `blocks` are promised to decodes. Returns how many are admitted.
    """
    row, draft, n = view.row[0], plan.draft[0], 0
    cap = min(int(trail.p.batch_cap), row.max_num_seqs)
    while room > 0:
        i = _next(view, plan, trail)
        if i < 0:
            break
        r = view.request[i]
        if r.prompt > row.max_model_len:
            drop(plan, i)
            continue
        need = blocks_to_admit(r, row.block_size)
        missing = need + row.watermark_blocks + blocks - draft.free
        if missing > 0 or draft.seats + n >= cap:
            v = _victim(view, plan, trail, _rank(row, trail, i, r), missing)
            if v < 0:
                break
            take_kv(view, plan, v)
            name(plan, v)
            trail.request[v].preempted += 1
        name(plan, i)
        trail.request[n].chosen = i
        n += 1
        blocks += need
        room -= tokens_left(r)
    return n


@inner
def _needs(view: View) -> tuple[int, int]:
    """What all requests that hold KV take: (tokens, KV blocks)."""
    row, tokens, blocks = view.row[0], 0, 0
    for k in range(row.num_running):
        r = view.request[view.running[k]]
        tokens += tokens_left(r)
        if is_decode(r):
            blocks += decode_need(r, row.block_size)
    return tokens, blocks


@kernel_of(TRAIL)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, draft = view.row[0], plan.draft[0]
    trail = Trail(_params(memory.params), _server(memory.row), _requests(memory.request))
    budget = min(int(trail.p.token_budget), row.max_batched_tokens)
    _note_newcomers(view, trail)
    tokens, blocks = _needs(view)
    if blocks + row.decode_needs_free_block * (row.num_running > 0) > row.free_blocks:
        continue_prefills(view, plan, decode_oldest_first(view, plan), budget)
        return
    n = _choose(view, plan, trail, budget - tokens, blocks)
    for k in range(row.num_running):
        i = view.running[k]
        if is_decode(view.request[i]) and not is_named(plan, i):
            decode(view, plan, i)
    continue_prefills(view, plan, row.num_running, budget)
    for k in range(n):
        i = trail.request[k].chosen
        enter(view, plan, i, min(tokens_left(view.request[i]), budget - draft.tokens))
