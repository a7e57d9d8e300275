"""ELIS: shortest predicted remaining output first, decided anew after every window of tokens."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from baselines.grids import BATCH_CAPS
from baselines.parameters import Requests, Tokens, TokensFrom0
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.kv import blocks_to_admit, decode_need
from engine.server.members import MEMBER, SEEN, join, keep_present, look_at_queue
from engine.server.moves import admit, chunk, decode, is_decode, remaining, take_kv
from engine.server.plan import drop, is_named, name
from engine.server.policy import Policy, Space, kernel_of
from engine.server.sorting import HEAP, put, take_out
from engine.server.state import RUNNING, WAITING, Memory, Plan, View

SERVER = np.dtype(
    [
        ("members", "i8"),  # requests in the batch
        ("heaped", "i8"),  # requests in the heap
        ("seen", SEEN),
    ],
    align=True,
)
"""What ELIS remembers of the server."""

REQUEST = np.dtype(
    [
        ("member", MEMBER),  # the batch, best first
        ("until", "i8"),  # generated tokens at which its window ends
        ("heap", HEAP),  # those who wait outside the batch, least output left on top
    ],
    align=True,
)
"""What it remembers of a request."""


class Window(NamedTuple):
    """The batch of a window, and who waits outside it."""

    row: Any  # SERVER
    request: Any  # REQUEST[requests]


@dataclass(frozen=True)
class ELIS(Policy):
    """The requests with least predicted output left are one batch for a window of tokens; then all are ranked anew.

    Preemption happens only between windows. A window ends when each request of the batch has finished or has generated
    `window` tokens; who is done early waits for the others, and a place that comes free stays empty unless
    `refill_inside_window`. Requests outside the batch keep their KV until one in the batch needs it, then those with
    most output left lose theirs. Prompts run alone and whole, as in vLLM v0, on which the paper's workers are built.
    """

    window: TokensFrom0 = 50
    """Output tokens per request in one window (0: until everybody in the batch has finished)."""
    batch_size: Requests = 32
    """Requests in a batch."""
    prompt_budget: Tokens = 4096
    """Prompt tokens per iteration."""
    refill_inside_window: bool = False
    """Fill places that are free before the window ends, for the rest of it."""

    name: ClassVar[str] = "elis"
    paper: ClassVar[str] = "ELIS, arXiv 2505.09142"
    knows: ClassVar[str] = "remaining output, predicted anew every window"
    prediction: ClassVar[str] = "iterative"
    eviction: ClassVar[str] = "most output left outside the batch, recompute"
    evidence: ClassVar[str] = "reconstructed from notes and a third party's code; batch size and refill are ours"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(SERVER)
    space: ClassVar[Space] = {"window": (5, 10, 25, 50), "batch_size": BATCH_CAPS, "prompt_budget": (1024, 2048, 4096)}


_params, _server, _requests = record(params_of(ELIS)), record(SERVER), records(REQUEST)


@inner
def _queue_up(view: View, window: Window, i: int) -> None:
    """Put request `i` into the heap, at its present place, if it waits outside the batch."""
    m, lines, r = window.row, window.request, view.request[i]
    if r.status == WAITING and not lines[i].member.is_listed:
        lines[i].heap.key, lines[i].heap.tie = remaining(view.row[0], r), i
        m.heaped = put(lines.heap, m.heaped, i)


@inner
def _note_newcomers(view: View, window: Window) -> None:
    """Queue up new arrivals and who has lost its KV since the last plan (they stand at the head of the queue)."""
    lost, first = look_at_queue(view, window.row.seen)
    for k in range(lost):
        _queue_up(view, window, view.queue[k])
    for i in range(first, view.row[0].next_arrival):
        _queue_up(view, window, i)


@inner
def _best_waiting(view: View, window: Window) -> int:
    """The top of the heap, without those whom other policies have served meanwhile; -1 if it is empty."""
    m, heap = window.row, window.request.heap
    while m.heaped > 0:
        i = heap[0].listed
        if view.request[i].status == WAITING:
            return i
        m.heaped = take_out(heap, m.heaped, i)
    return -1


@inner
def _best_outside(view: View, window: Window) -> int:
    """The request outside the batch with the least predicted output left (ties: arrival); -1 if there is none."""
    row, best, least = view.row[0], _best_waiting(view, window), 0.0
    if best >= 0:
        least = window.request[best].heap.key
    for k in range(row.num_running):
        i = view.running[k]
        if window.request[i].member.is_listed:
            continue
        left = remaining(row, view.request[i])
        if best < 0 or left < least or (left == least and i < best):
            best, least = i, left
    return best


@inner
def _fill_batch(view: View, window: Window, size: float, tokens: int) -> None:
    """Take the best requests into the batch until it is full, each for so many tokens."""
    m, lines = window.row, window.request
    while m.members < size:
        i = _best_outside(view, window)
        if i < 0:
            break
        m.heaped = take_out(lines.heap, m.heaped, i)
        m.members = join(lines.member, m.members, i)
        lines[i].until = view.request[i].generated + tokens


@inner
def _end_window(view: View, window: Window) -> None:
    m, members = window.row, window.request.member
    for k in range(m.members):
        i = members[k].listed
        members[i].is_listed = 0
        _queue_up(view, window, i)
    m.members = 0


@inner
def _tokens_left(view: View, window: Window) -> int:
    """The most tokens that anybody in the batch has to generate in this window."""
    left = 0
    for k in range(window.row.members):
        i = window.request[k].member.listed
        left = max(left, window.request[i].until - view.request[i].generated)
    return left


@inner
def _worst_holder(view: View, plan: Plan, window: Window, after: int) -> int:
    """Who loses its KV first: outside the batch the one with most output left, then the batch's last after `after`."""
    row, members, worst, most = view.row[0], window.request.member, -1, 0.0
    for k in range(row.num_running):
        i = view.running[k]
        if members[i].is_listed or is_named(plan, i):
            continue
        left = remaining(row, view.request[i])
        if left >= most:
            worst, most = i, left
    if worst < 0:
        for k in range(window.row.members - 1, after, -1):
            i = members[k].listed
            if view.request[i].status == RUNNING and not is_named(plan, i):
                return i
    return worst


@inner
def _make_room(view: View, plan: Plan, window: Window, after: int, blocks: int, seats: int) -> None:
    """Take KV away until so many blocks and seats are free, or nobody is left to lose any."""
    draft = plan.draft[0]
    while draft.free < blocks or draft.seats + seats > view.row[0].max_num_seqs:
        v = _worst_holder(view, plan, window, after)
        if v < 0:
            break
        take_kv(view, plan, v)
        name(plan, v)


@inner
def _run_prompts(view: View, plan: Plan, window: Window, budget: int) -> bool:
    """Prompts of the batch, best first, whole ones as far as the budget goes; False if there is none to run."""
    row, draft = view.row[0], plan.draft[0]
    for k in range(window.row.members):
        i = window.request[k].member.listed
        r = view.request[i]
        if draft.tokens >= budget or is_named(plan, i) or (r.status == RUNNING and is_decode(r)):
            continue
        if r.status == RUNNING:
            chunk(view, plan, i, budget - draft.tokens)
        elif r.prompt > row.max_model_len:
            drop(plan, i)
        else:
            need = blocks_to_admit(r, row.block_size) + row.watermark_blocks
            _make_room(view, plan, window, k, need, 1)
            if not admit(view, plan, i, budget - draft.tokens):
                break
    return bool(draft.tokens > 0)


@inner
def _run_decodes(view: View, plan: Plan, window: Window) -> None:
    """One token for everybody in the batch that has not got all of its window."""
    row, draft = view.row[0], plan.draft[0]
    kept = draft.free - row.free_blocks  # what was taken for a prompt that needs still more is left to it
    for k in range(window.row.members):
        i = window.request[k].member.listed
        r = view.request[i]
        if r.status != RUNNING or is_named(plan, i) or r.generated >= window.request[i].until:
            continue
        need = decode_need(r, row.block_size) + kept
        _make_room(view, plan, window, k, need, 0)
        if draft.free >= need and draft.tokens < row.max_batched_tokens:
            decode(view, plan, i)


@inner
def _run(view: View, plan: Plan, window: Window, prompt_budget: float) -> None:
    if not _run_prompts(view, plan, window, min(int(prompt_budget), view.row[0].max_batched_tokens)):
        _run_decodes(view, plan, window)


@kernel_of(ELIS)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    if view.row[0].num_waiting + view.row[0].num_running == 0:
        return
    p, window = _params(memory.params), Window(_server(memory.row), _requests(memory.request))
    _note_newcomers(view, window)
    window.row.members = keep_present(view, window.request.member, window.row.members)
    left = _tokens_left(view, window)
    if left > 0:
        if p.refill_inside_window:
            _fill_batch(view, window, p.batch_size, left)
        _run(view, plan, window, p.prompt_budget)
        if plan.size[0] > 0:
            return
    # Nobody lacks tokens, or who does waits for KV of those who have theirs.
    _end_window(view, window)
    _fill_batch(view, window, p.batch_size, int(p.window) if p.window > 0.0 else 1 << 31)
    _run(view, plan, window, p.prompt_budget)
