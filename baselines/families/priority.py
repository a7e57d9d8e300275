"""Batches by priority: every request present in one order, served from the front while tokens and KV last.

The policy gives each request a key (smaller goes first; arrival breaks ties). Requests that the batch leaves out keep
their KV, until a decode in front of them needs it: then the last in the order lose theirs, to the host where the server
swaps. Newcomers push others out only to the host: where losing KV means to compute everything again, admitting by
eviction ends in recomputing all the time.

Thousands may wait, and of these an iteration needs the first few. So the order is kept in two parts: those who hold KV
(and whoever else may have changed) are a short sorted list, those who only wait are a heap. What changes a key while a
request waits is its waiting itself; the policy has that watched by a second heap, the longest wait on top.
"""

from typing import Any, NamedTuple

import numpy as np

from engine.compiled.jit import inner
from engine.server.kv import blocks_to_admit, decode_need, host_need
from engine.server.members import MEMBER, SEEN, is_present, join, keep_present, look_at_queue
from engine.server.moves import admit, chunk, decode, fits, is_decode, swap_out, take_kv
from engine.server.plan import drop
from engine.server.sorting import HEAP, before, put, take_out
from engine.server.state import RUNNING, WAITING, Plan, View

RANKED = np.dtype(
    [
        ("member", MEMBER),  # the list
        ("heap", HEAP),  # those who wait; its key and its tie, the arrival, rank those on the list, too
        ("timer", HEAP),  # those whose wait is watched; its key is the time from which the wait counts
        ("timed", "i8"),  # whether the request's wait is to be watched (the policy says)
    ],
    align=True,
)
"""What is remembered of a request."""

RANKING = np.dtype(
    [
        ("listed", "i8"),  # lengths of the list and of the heaps
        ("heaped", "i8"),
        ("watched", "i8"),
        ("seen", SEEN),
        ("next", "i8"),  # of this plan: place in the list of who comes next
        ("last", "i8"),  # of this plan: those from this place on make way for others
        ("victim", "i8"),  # of this plan: 1 + who has made way last, 0: nobody; who is behind it is not let in
        ("host", "i8"),  # of this plan: half KV blocks for which the host has room
        ("blocked", "i8"),  # of this plan: whether a newcomer was refused, which keeps out those behind it
    ],
    align=True,
)
"""What is remembered of the server."""


class Ranks(NamedTuple):
    """The order of everybody present, in the memory of a policy."""

    row: Any  # RANKING
    request: Any  # RANKED[requests]


@inner
def _move_to_list(ranks: Ranks, i: int) -> None:
    """Put request `i` at the end of the list and take it out of the heaps."""
    lines, m = ranks.request, ranks.row
    m.heaped = take_out(lines.heap, m.heaped, i)
    m.watched = take_out(lines.timer, m.watched, i)
    m.listed = join(lines.member, m.listed, i)


@inner
def enlist(ranks: Ranks, i: int) -> None:
    """Let request `i` be on the list."""
    if ranks.request[i].member.is_listed == 0:
        _move_to_list(ranks, i)


@inner
def list_changed(view: View, ranks: Ranks) -> None:
    """Put everybody on the list whose key may have changed since the last plan.

    Those are the requests that hold KV, those that have lost it, and new arrivals; who waited then and still does is in
    the heap. Other policies may have planned in between.
    """
    lines, m, row = ranks.request, ranks.row, view.row[0]
    m.listed = keep_present(view, lines.member, m.listed)
    for k in range(row.num_running):
        enlist(ranks, view.running[k])
    lost, first = look_at_queue(view, m.seen)
    for k in range(lost):
        enlist(ranks, view.queue[k])
    for i in range(first, row.next_arrival):
        lines[i].heap.tie = i
        if is_present(view.request[i]):
            enlist(ranks, i)


@inner
def _can_settle(row: np.record, r: np.record) -> bool:
    """Whether a request may wait in the heap: it has not just run, and it is not one to be dropped."""
    just_ran = r.last_run >= 0 and r.last_run >= row.iterations - 1
    return bool(r.status == WAITING and r.prompt <= row.max_model_len and not just_ran)


@inner
def settle(view: View, ranks: Ranks) -> None:
    """Move those who wait from the list to the heap and sort the rest by (key, arrival)."""
    lines, m, row, listed = ranks.request, ranks.row, view.row[0], ranks.row.listed
    m.listed = 0
    for k in range(listed):
        i = lines[k].member.listed
        if not _can_settle(row, view.request[i]):
            m.listed = join(lines.member, m.listed, i)
            continue
        lines[i].member.is_listed = 0
        m.heaped = put(lines.heap, m.heaped, i)
        if lines[i].timed:
            m.watched = put(lines.timer, m.watched, i)
    sort_listed(ranks)


@inner
def longest_wait(ranks: Ranks) -> int:
    """The watched request of the heap whose wait counts from the earliest time; -1 if there is none."""
    return ranks.request[0].timer.listed if ranks.row.watched > 0 else -1


@inner
def rekey(ranks: Ranks, i: int) -> None:
    """Move request `i` to where it belongs in the heaps after its key, its time or whether it is watched changed."""
    lines, m = ranks.request, ranks.row
    m.heaped = put(lines.heap, m.heaped, i)
    if lines[i].timed:
        m.watched = put(lines.timer, m.watched, i)
    else:
        m.watched = take_out(lines.timer, m.watched, i)


@inner
def sort_listed(ranks: Ranks) -> None:
    """Sort the list by (key, arrival); cheap if few keys have changed since the last time."""
    members, heap = ranks.request.member, ranks.request.heap
    for end in range(1, ranks.row.listed):
        i, k = members[end].listed, end
        while k > 0 and before(heap, i, members[k - 1].listed):
            members[k].listed = members[k - 1].listed
            k -= 1
        members[k].listed = i


@inner
def _first_waiting(view: View, ranks: Ranks) -> int:
    """The first of the heap, if it goes before this plan's victims; -1 if nobody does."""
    lines, m = ranks.request, ranks.row
    while m.heaped > 0:
        i = lines[0].heap.listed
        if view.request[i].status == WAITING:
            return i if m.victim == 0 or before(lines.heap, i, m.victim - 1) else -1
        m.heaped = take_out(lines.heap, m.heaped, i)
        m.watched = take_out(lines.timer, m.watched, i)
    return -1


@inner
def next_in_order(view: View, ranks: Ranks) -> int:
    """Who comes next, from the list or, unless newcomers are kept out, from the heap; -1: nobody."""
    lines, m = ranks.request, ranks.row
    listed = lines[m.next].member.listed if m.next < m.last else -1
    if m.heaped > 0 and not m.blocked:
        waiting = _first_waiting(view, ranks)
        if waiting >= 0 and (listed < 0 or before(lines.heap, waiting, listed)):
            return waiting
    m.next += 1
    return listed


@inner
def _can_swap_enough(view: View, plan: Plan, ranks: Ranks, blocks: int, packed: bool) -> bool:
    """Whether swapping the last in the order out can free this many blocks and a seat."""
    row, draft, m = view.row[0], plan.draft[0], ranks.row
    missing, seats, host, last = blocks - draft.free, draft.seats + 1 - row.max_num_seqs, m.host, m.last
    if host == 0:
        return False
    while last > m.next and (missing > 0 or seats > 0):
        last -= 1
        r = view.request[ranks.request[last].member.listed]
        if r.status == RUNNING:
            host -= host_need(row, r, packed)
            if host < 0:
                return False
            missing -= r.blocks
            seats -= 1
    return missing <= 0 and seats <= 0


@inner
def _make_room(view: View, plan: Plan, ranks: Ranks, blocks: int, seats: int, packed: bool) -> None:
    """Take KV from the last in the order, to the host while that has room, until so many blocks and seats are free."""
    row, draft, m = view.row[0], plan.draft[0], ranks.row
    while (draft.free < blocks or draft.seats + seats > row.max_num_seqs) and m.last > m.next:
        m.last -= 1
        v = ranks.request[m.last].member.listed
        if view.request[v].status != RUNNING:
            continue
        m.victim = v + 1
        need = host_need(row, view.request[v], packed)
        if need > m.host:
            take_kv(view, plan, v)
        else:
            swap_out(view, plan, v, packed)
            m.host -= need


@inner
def _let_in(view: View, plan: Plan, ranks: Ranks, i: int, most: int, packed: bool) -> bool:
    """Admit request `i`; where the server swaps, the last in the order make room for it. False if they cannot."""
    row = view.row[0]
    blocks = blocks_to_admit(view.request[i], row.block_size) + row.watermark_blocks
    if not fits(view, plan, i):
        if not _can_swap_enough(view, plan, ranks, blocks, packed):
            return False
        _make_room(view, plan, ranks, blocks, 1, packed)
    admit(view, plan, i, most)
    enlist(ranks, i)
    return True


@inner
def serve_in_order(view: View, plan: Plan, ranks: Ranks, budget: int, cap: int, packed: bool) -> None:
    """Serve everybody present in the order of (key, arrival), up to `budget` tokens and `cap` requests.

    A newcomer needs KV for its whole prompt above the watermark and a seat under max_num_seqs; where the server swaps,
    the last in that order make room for it. The first that does not get them keeps out the newcomers behind it. A
    decode that finds no free block takes the KV of the last in the order.

    Args:
        view: the server.
        plan: receives the batch.
        ranks: the order, settled; who is taken from the heap goes to the list.
        budget: tokens of the iteration (the server's max_batched_tokens also applies).
        cap: requests of the iteration.
        packed: whether swapped KV is compressed.
    """
    row, draft, m = view.row[0], plan.draft[0], ranks.row
    m.next, m.last, m.victim, m.host, m.blocked = 0, m.listed, 0, row.free_host, 0
    budget, holders = min(budget, row.max_batched_tokens), row.num_running
    while draft.tokens < budget and cap > 0 and not (m.blocked and holders == 0):
        i = next_in_order(view, ranks)
        if i < 0:
            break
        r = view.request[i]
        if r.status == RUNNING:
            need = decode_need(r, row.block_size) if is_decode(r) else 0
            if need > draft.free:
                _make_room(view, plan, ranks, need, 0, packed)
                if need > draft.free:
                    break
            if is_decode(r):
                decode(view, plan, i)
            else:
                chunk(view, plan, i, budget - draft.tokens)
            holders -= 1
            cap -= 1
        elif r.prompt > row.max_model_len:
            drop(plan, i)
        elif not m.blocked:
            m.blocked = not _let_in(view, plan, ranks, i, budget - draft.tokens, packed)
            cap -= not m.blocked
