"""The moves that the baselines share: give decodes their token, find the next waiting request, chunk a prompt.

Every policy plans against a running count of free KV blocks, because what it has planned so far is not done yet. A
request that was evicted in the present plan waits at the head of the queue from that moment on, the last victim first;
the list of these *victims* is kept in column ``VICTIM`` of the policy's memory.

In an order other than arrival the next request of a short queue is found by looking at all of it; a long one is kept in
a heap, as what it costs to look at thousands at every admission would be more than all the rest.
"""

from typing import Any

import numpy as np

from baselines.families.heap import HEAP_COLUMNS, HEAP_KEY, PLACE, TIE, put, take_out
from engine.compiled.jit import hot, inner
from engine.server.kv import blocks_to_admit, decode_need, tokens_left
from engine.server.plan import drop, evict, schedule
from engine.server.state import WAITING, Memory, Plan, View

FCFS, SPF, STRICT_SPF, WEIGHED = 0, 1, 2, 3
"""Order of the queue: arrival, shortest prompt first, strict tier first and then shortest prompt, fewest tokens
as `weighed` counts them."""

VICTIM, TAKEN, LEFT, HEAP = range(4)
FILL_REQUEST_MEMORY = HEAP + HEAP_COLUMNS
"""Columns of a policy's request memory that these moves use: victims of this plan, stamp of requests taken, requests
that the heap lost to the last plan, the heap of a long queue."""

BEST, SEEN_ARRIVALS, SEEN_WAITING, SEEN_EVICTIONS, SEEN_ORDER, AGEING, FORESIGHT = range(7)
NUM_HEAPED, HEAP_ORDER, HEAP_ARRIVALS, HEAP_LOST, HEAD, NUM_LEFT, LEFT_STAMP, FILL_ROW_MEMORY = range(7, 15)
"""Cells of a policy's row memory: the best waiting request and the queue for which it was found; weights of WEIGHED,
which stay the same for a run; the heap's length, its order (0: there is none) and the queue for which it holds; how
many went to the head of the queue since it was built; length of the column LEFT and the plan that wrote it."""

SHORT_QUEUE = 64
"""Waiting requests up to which the next one is found without a heap."""


@hot
def is_decode(r: Any) -> bool:
    """Whether a request that holds KV has its prompt done."""
    return bool(r.prefilled == r.prompt)


@hot
def fits_decode(row: Any, r: Any, free: int) -> bool:
    """Whether `free` blocks allow request `r` its next decode."""
    return bool(free > 0 or (decode_need(r, row.block_size) == 0 and not row.decode_needs_free_block))


@inner
def schedule_decode(plan: Plan, row: Any, i: int, r: Any) -> int:
    """Plan one decode token; returns the KV blocks that it takes (0 or 1)."""
    schedule(plan, i, 1)
    return decode_need(r, row.block_size)


@inner
def evict_into(plan: Plan, memory: Memory, view: View, i: int, victims: int) -> int:
    """Plan an eviction and remember the victim; returns the KV blocks that come free."""
    evict(plan, i)
    memory.request[victims, VICTIM] = i
    return view.request[i].blocks


@inner
def weighed(memory: Memory, r: Any, tokens: int) -> float:
    """Prompt tokens, AGEING less for each second since the arrival, FORESIGHT more for each predicted output token.

    The present time, the same for all, is left out.
    """
    found = tokens + memory.row[AGEING] * r.arrival
    if memory.row[FORESIGHT] > 0.0:
        found += memory.row[FORESIGHT] * r.prediction
    return float(found)


@inner
def _precedes(view: View, memory: Memory, order: int, i: int, j: int) -> bool:
    """Whether request i goes strictly before request j in this order (position in the queue breaks ties)."""
    a, b = view.request[i], view.request[j]
    if order == STRICT_SPF and a.strict != b.strict:
        return bool(a.strict > b.strict)
    if order == WEIGHED:
        return weighed(memory, a, a.prompt) < weighed(memory, b, b.prompt)
    return bool(a.prompt < b.prompt)


@inner
def _scan(view: View, memory: Memory, order: int, victims: int) -> int:
    """First request in an order; looks only at new arrivals while the queue has not lost anybody."""
    row, seen = view.row[0], memory.row
    stamp = row.iterations + 1
    best, first = int(seen[BEST]), int(seen[SEEN_WAITING])
    only_arrivals = row.num_waiting - seen[SEEN_WAITING] == row.next_arrival - seen[SEEN_ARRIVALS]
    intact = victims == 0 and first > 0 and only_arrivals and seen[SEEN_EVICTIONS] == row.evictions + row.swaps
    intact = intact and seen[SEEN_ORDER] == order
    if not intact or memory.request[best, TAKEN] == stamp:
        best, first = -1, 0
    for k in range(victims - 1, -1, -1):
        i = int(memory.request[k, VICTIM])
        if memory.request[i, TAKEN] != stamp and (best < 0 or _precedes(view, memory, order, i, best)):
            best = i
    for k in range(first, row.num_waiting):
        i = view.queue[k]
        if memory.request[i, TAKEN] != stamp and (best < 0 or _precedes(view, memory, order, i, best)):
            best = i
    seen[BEST] = best
    seen[SEEN_ARRIVALS] = row.next_arrival
    seen[SEEN_WAITING] = row.num_waiting if victims == 0 and best >= 0 else 0
    seen[SEEN_EVICTIONS] = row.evictions + row.swaps
    seen[SEEN_ORDER] = order
    return best


@inner
def _heap_up(view: View, memory: Memory, order: int, i: int, tie: float) -> None:
    """Put request `i` into the heap; among equals the smallest `tie` goes first."""
    cells, m, r = memory.request, memory.row, view.request[i]
    key = float(r.prompt)
    if order == WEIGHED:
        key = weighed(memory, r, r.prompt)
    elif order == STRICT_SPF:
        key -= r.strict * 2.0**32
    cells[i, HEAP + HEAP_KEY], cells[i, HEAP + TIE] = key, tie
    m[NUM_HEAPED] = put(cells, HEAP, int(m[NUM_HEAPED]), i)


@inner
def _build_heap(view: View, memory: Memory, order: int) -> None:
    cells, m, row = memory.request, memory.row, view.row[0]
    for k in range(int(m[NUM_HEAPED])):
        cells[int(cells[k, HEAP]), HEAP + PLACE] = 0.0
    m[NUM_HEAPED], m[HEAP_ORDER], m[HEAD], m[NUM_LEFT] = 0.0, order, 0.0, 0.0
    m[HEAP_ARRIVALS], m[HEAP_LOST] = row.next_arrival, row.evictions + row.swaps
    for k in range(row.num_waiting):
        _heap_up(view, memory, order, view.queue[k], k)


@inner
def _update_heap(view: View, memory: Memory, order: int) -> None:
    """Put into the heap who waits since the last plan: evicted requests, arrivals, and who was taken but not served."""
    cells, m, row = memory.request, memory.row, view.row[0]
    lost, stamp = row.evictions + row.swaps, row.iterations + 1
    if m[HEAP_ORDER] != order:
        _build_heap(view, memory, order)
    for k in range(min(lost - int(m[HEAP_LOST]), row.num_waiting) - 1, -1, -1):
        m[HEAD] += 1.0
        _heap_up(view, memory, order, view.queue[k], -m[HEAD])
    for i in range(int(m[HEAP_ARRIVALS]), row.next_arrival):
        if view.request[i].status == WAITING and cells[i, HEAP + PLACE] == 0.0:
            _heap_up(view, memory, order, i, row.num_requests + i)
    m[HEAP_ARRIVALS], m[HEAP_LOST] = row.next_arrival, lost
    if m[LEFT_STAMP] != stamp:
        for k in range(int(m[NUM_LEFT])):
            i = int(cells[k, LEFT])
            if view.request[i].status == WAITING and cells[i, HEAP + PLACE] == 0.0:
                _heap_up(view, memory, order, i, cells[i, HEAP + TIE])
        m[LEFT_STAMP], m[NUM_LEFT] = stamp, 0.0


@inner
def _top(view: View, memory: Memory) -> int:
    """The first of the heap that this plan has not taken, -1 if there is none."""
    cells, m, stamp = memory.request, memory.row, view.row[0].iterations + 1
    while m[NUM_HEAPED] > 0.0:
        i = int(cells[0, HEAP])
        waits = view.request[i].status == WAITING
        if waits and cells[i, TAKEN] != stamp:
            return i
        m[NUM_HEAPED] = take_out(cells, HEAP, int(m[NUM_HEAPED]), i)
        if waits and m[NUM_LEFT] < cells.shape[0]:
            cells[int(m[NUM_LEFT]), LEFT] = i
            m[NUM_LEFT] += 1.0
    return -1


@inner
def _first_of_many(view: View, memory: Memory, order: int, victims: int) -> int:
    """As `_scan`, from the heap: first among equals are this plan's victims, the last one before the others."""
    stamp, best = view.row[0].iterations + 1, -1
    _update_heap(view, memory, order)
    for k in range(victims - 1, -1, -1):
        i = int(memory.request[k, VICTIM])
        if memory.request[i, TAKEN] != stamp and (best < 0 or _precedes(view, memory, order, i, best)):
            best = i
    i = _top(view, memory)
    return i if i >= 0 and (best < 0 or _precedes(view, memory, order, i, best)) else best


@inner
def _shortest(view: View, memory: Memory, order: int, victims: int) -> int:
    """First request in an order other than FCFS, -1 if all are taken."""
    if view.row[0].num_waiting <= SHORT_QUEUE:
        memory.row[HEAP_ORDER] = FCFS
        return _scan(view, memory, order, victims)
    memory.row[SEEN_WAITING] = 0.0
    return _first_of_many(view, memory, order, victims)


@inner
def next_waiting(view: View, memory: Memory, order: int, victims: int, taken: int) -> int:
    """The request that the queue would serve next, -1 if none is left.

    Args:
        view: the server.
        memory: the policy's memory; the first columns and cells belong to these moves.
        order: FCFS, SPF, STRICT_SPF or WEIGHED.
        victims: requests evicted by the present plan.
        taken: requests that the present plan has taken from the queue (see `take`).
    """
    row = view.row[0]
    if order != FCFS:
        return _shortest(view, memory, order, victims) if victims + row.num_waiting > taken else -1
    if taken < victims:
        return int(memory.request[victims - 1 - taken, VICTIM])
    return view.queue[taken - victims] if taken - victims < row.num_waiting else -1


@inner
def take(view: View, memory: Memory, i: int) -> None:
    """Mark a waiting request as taken (admitted or dropped) by the present plan."""
    memory.request[i, TAKEN] = view.row[0].iterations + 1


@inner
def admit_chunks(
    view: View,
    memory: Memory,
    plan: Plan,
    order: int,
    victims: int,
    tokens: int,
    budget: int,
    free: int,
    active: int,
    looks_first: bool = False,
) -> tuple[int, int]:
    """Admit from the queue while tokens, KV and sequences last; the first that does not fit blocks the rest.

    Args:
        view: the server.
        memory: the policy's memory.
        plan: receives the chunks.
        order: FCFS, SPF, STRICT_SPF or WEIGHED.
        victims: requests evicted by the present plan.
        tokens: tokens planned so far.
        budget: tokens that the iteration may process.
        free: KV blocks free after what is planned so far.
        active: requests holding KV after what is planned so far.
        looks_first: whether over-long prompts at the head are dropped with the budget used up, too.

    Returns:
        (tokens planned with the new chunks, KV blocks free after them).
    """
    row = view.row[0]
    taken = 0
    looks_first = looks_first and not row.eviction_keeps_output  # elsewhere nobody gets over the limit
    while tokens < budget or looks_first:
        i = next_waiting(view, memory, order, victims, taken)
        if i < 0:
            break
        r = view.request[i]
        if r.prompt > row.max_model_len:
            drop(plan, i)
            take(view, memory, i)
            taken += 1
            continue
        need = blocks_to_admit(r, row.block_size)
        left = tokens_left(r) if r.status == WAITING else r.prompt - r.prefilled  # a victim is not evicted yet
        chunk = min(left, budget - tokens)
        if free - need < row.watermark_blocks or active >= row.max_num_seqs or chunk <= 0:
            break
        schedule(plan, i, chunk)
        take(view, memory, i)
        taken += 1
        free -= need
        active += 1
        tokens += chunk
    return tokens, free


@inner
def take_decodes_oldest_first(view: View, memory: Memory, plan: Plan) -> tuple[int, int, int, int]:
    """One token for every decode, oldest first; where no block is free the youngest unvisited request is evicted.

    No more than the server's max_batched_tokens.

    Returns:
        (tokens planned, KV blocks free, victims, requests of `running` that were visited).
    """
    row = view.row[0]
    free = row.free_blocks
    tokens, victims, j, last = 0, 0, 0, row.num_running
    while j < last and tokens < row.max_batched_tokens:
        i = view.running[j]
        j += 1
        r = view.request[i]
        if not is_decode(r):
            continue
        while not fits_decode(row, r, free):
            last -= 1
            free += evict_into(plan, memory, view, view.running[last], victims)
            victims += 1
            if last < j:
                break
        if last >= j:
            free -= schedule_decode(plan, row, i, r)
            tokens += 1
    return tokens, free, victims, last


@inner
def continue_prefills(view: View, plan: Plan, last: int, tokens: int, budget: int) -> int:
    """Next chunk of every started prompt among ``running[:last]``, oldest first; returns the tokens planned."""
    left = view.row[0].num_prefilling
    for j in range(last):
        if left == 0:
            break
        i = view.running[j]
        r = view.request[i]
        if is_decode(r):
            continue
        left -= 1
        if tokens < budget:
            chunk = min(r.prompt - r.prefilled, budget - tokens)
            schedule(plan, i, chunk)
            tokens += chunk
    return tokens


@hot
def insert_sorted(cells: np.ndarray, ids: int, key: int, n: int, i: int) -> None:
    """Insert request `i` into the list in column `ids`, sorted by column `key`; among equals it comes last.

    Args:
        cells: the policy's request memory; ``cells[:n, ids]`` is the list, ``cells[i, key]`` the key of request i.
        ids: column that holds the list.
        key: column that holds the keys.
        n: length of the list before.
        i: the request.
    """
    value, k = cells[i, key], n
    while k > 0 and cells[int(cells[k - 1, ids]), key] > value:
        cells[k, ids] = cells[k - 1, ids]
        k -= 1
    cells[k, ids] = i
