"""Batches by priority: every request present in one order, served from the front while tokens and KV last.

The policy gives each request a key (smaller goes first; arrival breaks ties). Requests that the batch leaves out keep
their KV, until a decode in front of them needs it: then the last in the order lose theirs, to the host where the server
swaps. Newcomers push others out only to the host: where losing KV means to compute everything again, admitting by
eviction ends in recomputing all the time.

Thousands may wait, and of these an iteration needs the first few. So the order is kept in two parts: those who hold KV
(and whoever else may have changed) are a short sorted list, those who only wait are a heap. What changes a key while a
request waits is its waiting itself; the policy has that watched by a second heap, the longest wait on top.
"""

from typing import Any

from baselines.families.heap import HEAP_COLUMNS, HEAP_KEY, TIE, before, put, take_out
from engine.compiled.jit import inner
from engine.server.kv import blocks_to_admit, decode_need, host_need, tokens_left
from engine.server.plan import drop, evict, schedule, swap
from engine.server.state import RUNNING, WAITING, Memory, Plan, View

LISTED, IS_LISTED, HEAP, TIMER = 0, 1, 2, 2 + HEAP_COLUMNS
KEY, SINCE = HEAP + HEAP_KEY, TIMER + HEAP_KEY
TIMED, PRIORITY_REQUEST_MEMORY = TIMER + HEAP_COLUMNS, TIMER + HEAP_COLUMNS + 1
"""Columns of a policy's request memory: the list, whether a request is on it, the heap of those who wait, the heap of
those whose wait is watched; in these the key of each request and the time from which its wait counts; whether it is to
be watched (the policy says)."""

NUM_LISTED, NUM_HEAPED, NUM_WATCHED, SEEN_ARRIVALS, SEEN_LOST, PRIORITY_ROW_MEMORY = range(6)
"""Cells of a policy's row memory: lengths of the list and of the heaps, requests ever put on the list, times that KV
had been lost."""


@inner
def _enlist(memory: Memory, n: int, i: int) -> int:
    """Put request `i` at the end of the list of `n`, out of the heaps; returns the length of the list."""
    cells, m = memory.request, memory.row
    m[NUM_HEAPED] = take_out(cells, HEAP, int(m[NUM_HEAPED]), i)
    m[NUM_WATCHED] = take_out(cells, TIMER, int(m[NUM_WATCHED]), i)
    cells[n, LISTED] = i
    cells[i, IS_LISTED] = 1.0
    return n + 1


@inner
def list_changed(view: View, memory: Memory) -> int:
    """Put everybody on the list whose key may have changed since the last plan; returns its length.

    Those are the requests that hold KV, those that have lost it, and new arrivals; who waited then and still does is in
    the heap. Other policies may have planned in between.
    """
    cells, m, row = memory.request, memory.row, view.row[0]
    listed, n = int(m[NUM_LISTED]), 0
    for k in range(listed):
        i = int(cells[k, LISTED])
        status = view.request[i].status
        if status == WAITING or status == RUNNING:
            cells[n, LISTED] = i
            n += 1
        else:
            cells[i, IS_LISTED] = 0.0
    for k in range(row.num_running):
        i = view.running[k]
        if cells[i, IS_LISTED] == 0.0:
            n = _enlist(memory, n, i)
    lost = row.evictions + row.swaps
    for k in range(min(lost - int(m[SEEN_LOST]), row.num_waiting)):  # who has lost KV stands at the head of the queue
        i = view.queue[k]
        if cells[i, IS_LISTED] == 0.0:
            n = _enlist(memory, n, i)
    for i in range(int(m[SEEN_ARRIVALS]), row.next_arrival):
        cells[i, HEAP + TIE] = i
        status = view.request[i].status
        if cells[i, IS_LISTED] == 0.0 and (status == WAITING or status == RUNNING):
            n = _enlist(memory, n, i)
    m[SEEN_ARRIVALS], m[SEEN_LOST] = row.next_arrival, lost
    return n


@inner
def _can_settle(row: Any, r: Any) -> bool:
    """Whether a request may wait in the heap: it has not just run, and it is not one to be dropped."""
    just_ran = r.last_run >= 0 and r.last_run >= row.iterations - 1
    return bool(r.status == WAITING and r.prompt <= row.max_model_len and not just_ran)


@inner
def settle(view: View, memory: Memory, n: int) -> int:
    """Move those who wait from the list to the heap and sort the rest by (key, arrival); returns its length."""
    cells, m, row, listed = memory.request, memory.row, view.row[0], n
    n = 0
    for k in range(listed):
        i = int(cells[k, LISTED])
        if not _can_settle(row, view.request[i]):
            cells[n, LISTED] = i
            n += 1
            continue
        cells[i, IS_LISTED] = 0.0
        m[NUM_HEAPED] = put(cells, HEAP, int(m[NUM_HEAPED]), i)
        if cells[i, TIMED] > 0.0:
            m[NUM_WATCHED] = put(cells, TIMER, int(m[NUM_WATCHED]), i)
    sort_listed(memory, n)
    m[NUM_LISTED] = n
    return n


@inner
def longest_wait(memory: Memory) -> int:
    """The watched request of the heap whose wait counts from the earliest time; -1 if there is none."""
    return int(memory.request[0, TIMER]) if memory.row[NUM_WATCHED] > 0.0 else -1


@inner
def rekey(memory: Memory, i: int) -> None:
    """Move request `i` to where it belongs in the heaps after its key, its time or whether it is watched changed."""
    cells, m = memory.request, memory.row
    m[NUM_HEAPED] = put(cells, HEAP, int(m[NUM_HEAPED]), i)
    if cells[i, TIMED] > 0.0:
        m[NUM_WATCHED] = put(cells, TIMER, int(m[NUM_WATCHED]), i)
    else:
        m[NUM_WATCHED] = take_out(cells, TIMER, int(m[NUM_WATCHED]), i)


@inner
def sort_listed(memory: Memory, n: int) -> None:
    """Sort the list by (key, arrival); cheap if few keys have changed since the last time."""
    cells = memory.request
    for end in range(1, n):
        i = int(cells[end, LISTED])
        key, k = cells[i, KEY], end
        while k > 0:
            j = int(cells[k - 1, LISTED])
            if cells[j, KEY] < key or (cells[j, KEY] == key and j < i):
                break
            cells[k, LISTED] = j
            k -= 1
        cells[k, LISTED] = i


@inner
def _first_waiting(view: View, memory: Memory, limit: int) -> int:
    """The first of the heap, if it goes before request `limit` (-1: no limit); -1 if nobody does."""
    cells, m = memory.request, memory.row
    while m[NUM_HEAPED] > 0.0:
        i = int(cells[0, HEAP])
        if view.request[i].status == WAITING:
            return i if limit < 0 or before(cells, HEAP, i, limit) else -1
        m[NUM_HEAPED] = take_out(cells, HEAP, int(m[NUM_HEAPED]), i)
        m[NUM_WATCHED] = take_out(cells, TIMER, int(m[NUM_WATCHED]), i)
    return -1


@inner
def _first(view: View, memory: Memory, listed: int, victim: int, blocked: bool) -> int:
    """Who comes next: `listed`, the next of the list, or the first of the heap unless it is blocked; -1: nobody."""
    waiting = -1 if blocked else _first_waiting(view, memory, victim)
    return waiting if waiting >= 0 and (listed < 0 or before(memory.request, HEAP, waiting, listed)) else listed


@inner
def _can_swap_enough(
    view: View, memory: Memory, k: int, last: int, blocks: int, seats: int, host: int, packed: bool
) -> bool:
    """Whether swapping the requests ``list[k:last]`` out, last one first, frees this many blocks and seats."""
    row = view.row[0]
    while last > k and (blocks > 0 or seats > 0):
        last -= 1
        r = view.request[int(memory.request[last, LISTED])]
        if r.status == RUNNING:
            host -= host_need(row, r, packed)
            if host < 0:
                return False
            blocks -= r.blocks
            seats -= 1
    return blocks <= 0 and seats <= 0


@inner
def _push_out(view: View, plan: Plan, i: int, host: int, packed: bool) -> int:
    """Take the KV of request `i` away: to the host if it has room, else for good; returns the room left there."""
    need = host_need(view.row[0], view.request[i], packed)
    if need > host:
        evict(plan, i)
        return host
    swap(plan, i, packed)
    return host - need


@inner
def fill_by_priority(view: View, memory: Memory, plan: Plan, n: int, budget: int, cap: int, packed: bool) -> None:
    """Serve everybody present in the order of (key, arrival), up to `budget` tokens and `cap` requests.

    A newcomer needs KV for its whole prompt above the watermark and a seat under max_num_seqs; where the server swaps,
    the last in that order make room for it. The first that does not get them keeps out the newcomers behind it. A
    decode that finds no free block takes the KV of the last in the order.

    Args:
        view: the server.
        memory: the policy's memory, with the sorted list and the heap; who is taken from the heap goes to the list.
        plan: receives the batch.
        n: length of the list.
        budget: tokens of the iteration (the server's max_batched_tokens also applies).
        cap: requests of the iteration.
        packed: whether swapped KV is compressed.
    """
    row, cells, m = view.row[0], memory.request, memory.row
    tokens, free, active, host = 0, row.free_blocks, row.num_running, row.free_host
    last, k, blocked, unseen, victim = n, 0, False, row.num_running, -1
    budget = min(budget, row.max_batched_tokens)
    while tokens < budget and cap > 0 and not (blocked and unseen == 0):
        listed = int(cells[k, LISTED]) if k < last else -1
        i = _first(view, memory, listed, victim, blocked)
        if i < 0:
            break
        k += i == listed
        r = view.request[i]
        if r.status == RUNNING:
            unseen -= 1
            need = decode_need(r, row.block_size) if r.prefilled == r.prompt else 0
            missing, seats = need - free, 0
        elif r.prompt > row.max_model_len:
            drop(plan, i)
            continue
        elif blocked:
            continue
        else:
            need = blocks_to_admit(r, row.block_size)
            missing, seats = need + row.watermark_blocks - free, active + 1 - row.max_num_seqs
            if missing > 0 or seats > 0:
                blocked = host == 0 or not _can_swap_enough(view, memory, k, last, missing, seats, host, packed)
                if blocked:
                    continue
            active += 1
        while (missing > 0 or seats > 0) and last > k:
            last -= 1
            v = int(cells[last, LISTED])
            if view.request[v].status == RUNNING:
                victim = v
                host = _push_out(view, plan, v, host, packed)
                free += view.request[v].blocks
                missing -= view.request[v].blocks
                active -= 1
                seats -= 1
        if missing > 0:
            break
        chunk = min(tokens_left(r), budget - tokens)
        free -= need
        schedule(plan, i, chunk)
        tokens += chunk
        cap -= 1
        if i != listed:
            m[NUM_LISTED] = _enlist(memory, int(m[NUM_LISTED]), i)
