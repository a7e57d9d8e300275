"""Batches by priority: every request present in one sorted list, served from the front while tokens and KV last.

The policy gives each request a key (smaller goes first; arrival breaks ties). Requests that the batch leaves out keep
their KV, until a decode in front of them needs it: then the last of the list lose theirs, to the host where the server
swaps. Newcomers push others out only to the host: where losing KV means to compute everything again, admitting by
eviction ends in recomputing all the time.
"""

from engine._jit import inner
from engine.kv import blocks_to_admit, decode_need, host_need, tokens_left
from engine.policy import drop, evict, schedule, swap
from engine.state import DROPPED, FINISHED, RUNNING, Memory, Plan, View

LISTED, KEY, PRIORITY_REQUEST_MEMORY = 0, 1, 2
"""Columns of a policy's request memory: the list of requests present, the key of each request."""

NUM_LISTED, SEEN_ARRIVALS, SEEN_GONE, PRIORITY_ROW_MEMORY = 0, 1, 2, 3
"""Cells of a policy's row memory: length of the list, requests ever put on it, requests that had left the server."""


@inner
def list_present(view: View, memory: Memory) -> tuple[int, bool]:
    """Take who has left off the list, put new arrivals at its end; returns its length and whether any arrived."""
    cells, m, row = memory.request, memory.row, view.row[0]
    n, gone = int(m[NUM_LISTED]), row.finished + row.dropped
    if gone > m[SEEN_GONE]:
        listed, n = n, 0
        for k in range(listed):
            i = int(cells[k, LISTED])
            if view.request[i].status != FINISHED and view.request[i].status != DROPPED:
                cells[n, LISTED] = i
                n += 1
    first = int(m[SEEN_ARRIVALS])
    for i in range(first, row.next_arrival):
        cells[n, LISTED] = i
        n += 1
    m[NUM_LISTED], m[SEEN_ARRIVALS], m[SEEN_GONE] = n, row.next_arrival, gone
    return n, row.next_arrival > first


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
    """Serve the sorted list of `n` requests from its front, up to `budget` tokens and `cap` requests.

    A newcomer needs KV for its whole prompt above the watermark and a seat under max_num_seqs; where the server swaps,
    the last of the list make room for it. The first that does not get them keeps out the newcomers behind it. A decode
    that finds no free block takes the KV of the last of the list.

    Args:
        view: the server.
        memory: the policy's memory, with the sorted list.
        plan: receives the batch.
        n: length of the list.
        budget: tokens of the iteration.
        cap: requests of the iteration.
        packed: whether swapped KV is compressed.
    """
    row, cells = view.row[0], memory.request
    tokens, free, active, host = 0, row.free_blocks, row.num_running, row.free_host
    last, k, blocked, unseen = n, 0, False, row.num_running
    while k < last and tokens < budget and cap > 0 and not (blocked and unseen == 0):
        i = int(cells[k, LISTED])
        r = view.request[i]
        k += 1
        if r.status == RUNNING:
            unseen -= 1
            need = decode_need(r, row.block_size) if r.prefilled == r.prompt else 0
            missing, seats = need - free, 0
            if missing > 0 and last == k:
                continue
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
                host = _push_out(view, plan, v, host, packed)
                free += view.request[v].blocks
                missing -= view.request[v].blocks
                active -= 1
                seats -= 1
        if missing > 0:
            continue
        chunk = min(tokens_left(r), budget - tokens)
        free -= need
        schedule(plan, i, chunk)
        tokens += chunk
        cap -= 1
