"""Batches by priority: every request present in one sorted list, served from the front while tokens and KV last.

The policy gives each request a key (smaller goes first; arrival breaks ties). Requests that the batch leaves out keep
their KV, until a decode in front of them needs it: then the last of the list lose theirs. Newcomers evict nobody: where
eviction means to compute everything again, admitting by eviction ends in recomputing all the time.
"""

from engine._jit import inner
from engine.kv import blocks_to_admit, decode_need, tokens_left
from engine.policy import drop, evict, schedule
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
def fill_by_priority(view: View, memory: Memory, plan: Plan, n: int, budget: int) -> None:
    """Serve the sorted list of `n` requests from its front, up to `budget` tokens.

    A newcomer needs KV for its whole prompt above the watermark and a seat under max_num_seqs; the first that has not
    got them keeps out the newcomers behind it. A decode that finds no free block takes the KV of the last of the list.
    """
    row, cells = view.row[0], memory.request
    tokens, free, active, last, k, blocked = 0, row.free_blocks, row.num_running, n, 0, False
    unseen = row.num_running
    while k < last and tokens < budget and not (blocked and unseen == 0):
        i = int(cells[k, LISTED])
        r = view.request[i]
        k += 1
        if r.status == RUNNING:
            unseen -= 1
            need = decode_need(r, row.block_size) if r.prefilled == r.prompt else 0
            while free < need and last > k:
                last -= 1
                v = int(cells[last, LISTED])
                if view.request[v].status == RUNNING:
                    evict(plan, v)
                    free += view.request[v].blocks
                    active -= 1
            if free < need:
                continue
        elif r.prompt > row.max_model_len:
            drop(plan, i)
            continue
        else:
            need = blocks_to_admit(r, row.block_size)
            blocked = blocked or free - need < row.watermark_blocks or active >= row.max_num_seqs
            if blocked:
                continue
            active += 1
        chunk = min(tokens_left(r), budget - tokens)
        free -= need
        schedule(plan, i, chunk)
        tokens += chunk
