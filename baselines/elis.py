"""ELIS: shortest predicted remaining output first, decided anew after every window of tokens."""

from dataclasses import dataclass
from typing import Any, ClassVar

from baselines.families.heap import HEAP_COLUMNS, HEAP_KEY, TIE, put, take_out
from baselines.grids import BATCH_CAPS
from baselines.parameters import Requests, Tokens, TokensFrom0
from engine.compiled.jit import inner
from engine.server.kv import blocks_to_admit, decode_need, tokens_left
from engine.server.moves import remaining
from engine.server.plan import drop, evict, schedule
from engine.server.policy import HotKernel, Kernel, Policy, Space
from engine.server.state import RUNNING, WAITING, Memory, Plan, View

WINDOW, BATCH_SIZE, PROMPT_BUDGET, REFILL = range(4)

MEMBERS, IS_MEMBER, UNTIL, GONE, HEAP = range(5)
ELIS_REQUEST_MEMORY = HEAP + HEAP_COLUMNS
"""Columns: list of the batch, best first; whether a request is in it; generated tokens at which its window ends; number
of the plan that evicted it; the heap of those who wait outside the batch, least output left on top."""
NUM_MEMBERS, PLANS, NUM_HEAPED, SEEN_ARRIVALS, SEEN_LOST, ELIS_ROW_MEMORY = range(6)


@inner
def _is_present(r: Any) -> bool:
    return bool(r.status == WAITING or r.status == RUNNING)


@inner
def _lacks_tokens(memory: Memory, i: int, r: Any) -> bool:
    """Whether request `i` has to go on in this window."""
    return bool(_is_present(r) and r.generated < memory.request[i, UNTIL])


@inner
def _whole_window(memory: Memory) -> float:
    """Tokens per request in a window."""
    return float(memory.params[WINDOW]) if memory.params[WINDOW] > 0.0 else 2.0**31


@inner
def _queue_up(view: View, memory: Memory, i: int) -> None:
    """Put request `i` into the heap, at its present place, if it waits outside the batch."""
    cells, m, r = memory.request, memory.row, view.request[i]
    if r.status == WAITING and not cells[i, IS_MEMBER]:
        cells[i, HEAP + HEAP_KEY], cells[i, HEAP + TIE] = remaining(view.row[0], r), i
        m[NUM_HEAPED] = put(cells, HEAP, int(m[NUM_HEAPED]), i)


@inner
def _note_newcomers(view: View, memory: Memory) -> None:
    """Queue up new arrivals and who has lost its KV since the last plan (they stand at the head of the queue)."""
    m, row = memory.row, view.row[0]
    lost = row.evictions + row.swaps
    for k in range(min(lost - int(m[SEEN_LOST]), row.num_waiting)):
        _queue_up(view, memory, view.queue[k])
    for i in range(int(m[SEEN_ARRIVALS]), row.next_arrival):
        _queue_up(view, memory, i)
    m[SEEN_ARRIVALS], m[SEEN_LOST] = row.next_arrival, lost


@inner
def _best_waiting(view: View, memory: Memory) -> int:
    """The top of the heap, without those whom other policies have served meanwhile; -1 if it is empty."""
    cells, m = memory.request, memory.row
    while m[NUM_HEAPED] > 0.0:
        i = int(cells[0, HEAP])
        if view.request[i].status == WAITING:
            return i
        m[NUM_HEAPED] = take_out(cells, HEAP, int(m[NUM_HEAPED]), i)
    return -1


@inner
def _best_outside(view: View, memory: Memory) -> int:
    """The request outside the batch with the least predicted output left (ties: arrival); -1 if there is none."""
    row, best, least = view.row[0], _best_waiting(view, memory), 0.0
    if best >= 0:
        least = memory.request[best, HEAP + HEAP_KEY]
    for k in range(row.num_running):
        i = view.running[k]
        if memory.request[i, IS_MEMBER]:
            continue
        left = remaining(row, view.request[i])
        if best < 0 or left < least or (left == least and i < best):
            best, least = i, left
    return best


@inner
def _fill_batch(view: View, memory: Memory, window: float) -> None:
    """Take the best requests into the batch until it is full, each for so many tokens."""
    cells, m = memory.request, memory.row
    while m[NUM_MEMBERS] < memory.params[BATCH_SIZE]:
        i = _best_outside(view, memory)
        if i < 0:
            break
        r = view.request[i]
        cells[i, IS_MEMBER] = 1.0
        m[NUM_HEAPED] = take_out(cells, HEAP, int(m[NUM_HEAPED]), i)
        cells[i, UNTIL] = r.generated + window
        cells[int(m[NUM_MEMBERS]), MEMBERS] = i
        m[NUM_MEMBERS] += 1.0


@inner
def _end_window(view: View, memory: Memory) -> None:
    for k in range(int(memory.row[NUM_MEMBERS])):
        i = int(memory.request[k, MEMBERS])
        memory.request[i, IS_MEMBER] = 0.0
        _queue_up(view, memory, i)
    memory.row[NUM_MEMBERS] = 0.0


@inner
def _drop_finished(view: View, memory: Memory) -> float:
    """Take those who have left out of the batch; returns the most tokens that anybody in it has to generate."""
    cells, kept, left = memory.request, 0, 0.0
    for k in range(int(memory.row[NUM_MEMBERS])):
        i = int(cells[k, MEMBERS])
        if _is_present(view.request[i]):
            cells[kept, MEMBERS] = i
            kept += 1
            left = max(left, cells[i, UNTIL] - view.request[i].generated)
        else:
            cells[i, IS_MEMBER] = 0.0
    memory.row[NUM_MEMBERS] = kept
    return left


@inner
def _worst_holder(view: View, memory: Memory, after: int) -> int:
    """Who loses its KV first: outside the batch the one with most output left, then the batch's last after `after`."""
    row, cells, worst, most = view.row[0], memory.request, -1, 0.0
    for k in range(row.num_running):
        i = view.running[k]
        if cells[i, IS_MEMBER] or cells[i, GONE] == memory.row[PLANS]:
            continue
        left = remaining(row, view.request[i])
        if left >= most:
            worst, most = i, left
    if worst < 0:
        for k in range(int(memory.row[NUM_MEMBERS]) - 1, after, -1):
            i = int(cells[k, MEMBERS])
            if view.request[i].status == RUNNING and cells[i, GONE] != memory.row[PLANS]:
                return i
    return worst


@inner
def _make_room(
    view: View, memory: Memory, plan: Plan, after: int, need: int, free: int, active: int
) -> tuple[int, int]:
    """Evict until `need` blocks are free and, for a newcomer, a seat; returns (blocks free, requests that hold KV)."""
    row = view.row[0]
    while free < need or active >= row.max_num_seqs:
        v = _worst_holder(view, memory, after)
        if v < 0:
            break
        evict(plan, v)
        memory.request[v, GONE] = memory.row[PLANS]
        free += view.request[v].blocks
        active -= 1
    return free, active


@inner
def _run_prompts(view: View, memory: Memory, plan: Plan) -> bool:
    """Prompts of the batch, best first, whole ones as far as the budget goes; False if there is none to run."""
    row, cells = view.row[0], memory.request
    budget = min(int(memory.params[PROMPT_BUDGET]), row.max_batched_tokens)
    free, active, found = row.free_blocks, row.num_running, False
    for k in range(int(memory.row[NUM_MEMBERS])):
        i = int(cells[k, MEMBERS])
        r = view.request[i]
        swapped = r.status == WAITING and r.prefilled == r.prompt
        if budget == 0 or cells[i, GONE] == memory.row[PLANS] or (r.prefilled == r.prompt and not swapped):
            continue
        if r.status == WAITING:
            if r.prompt > row.max_model_len:
                drop(plan, i)
                continue
            need = blocks_to_admit(r, row.block_size)
            free, active = _make_room(view, memory, plan, k, need + row.watermark_blocks, free, active)
            if free < need + row.watermark_blocks or active >= row.max_num_seqs:
                break
            free -= need
            active += 1
        chunk = min(tokens_left(r), budget)
        schedule(plan, i, chunk)
        budget -= chunk
        found = True
    return found


@inner
def _run_decodes(view: View, memory: Memory, plan: Plan) -> None:
    """One token for everybody in the batch that has not got all of its window."""
    row, cells, free, tokens = view.row[0], memory.request, view.row[0].free_blocks, 0
    for k in range(int(memory.row[NUM_MEMBERS])):
        i = int(cells[k, MEMBERS])
        r = view.request[i]
        if r.status != RUNNING or cells[i, GONE] == memory.row[PLANS] or not _lacks_tokens(memory, i, r):
            continue
        need = decode_need(r, row.block_size)
        free, _ = _make_room(view, memory, plan, k, need, free, 0)
        if free >= need and tokens < row.max_batched_tokens:
            free -= need
            tokens += 1
            schedule(plan, i, 1)


@inner
def _run(view: View, memory: Memory, plan: Plan) -> None:
    if not _run_prompts(view, memory, plan):
        _run_decodes(view, memory, plan)


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    memory.row[PLANS] += 1.0
    if view.row[0].num_waiting + view.row[0].num_running == 0:
        return
    _note_newcomers(view, memory)
    left = _drop_finished(view, memory)
    if left > 0.0:
        if memory.params[REFILL]:
            _fill_batch(view, memory, left)
        _run(view, memory, plan)
        if plan.size[0] > 0:
            return
    # Nobody lacks tokens, or who does waits for KV of those who have theirs.
    _end_window(view, memory)
    _fill_batch(view, memory, _whole_window(memory))
    _run(view, memory, plan)


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
    request_memory: ClassVar[int] = ELIS_REQUEST_MEMORY
    row_memory: ClassVar[int] = ELIS_ROW_MEMORY
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {"window": (5, 10, 25, 50), "batch_size": BATCH_CAPS, "prompt_budget": (1024, 2048, 4096)}
