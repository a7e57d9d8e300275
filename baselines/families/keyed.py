"""A queue in the order of a key that stays the same while a request waits: the policy sets it when somebody comes.

Those who wait are a heap. Who is taken from it by a plan comes back if the plan was not carried out.
"""

from typing import Any, NamedTuple

import numpy as np

from engine.compiled.jit import inner
from engine.server.members import SEEN, look_at_queue
from engine.server.plan import is_named
from engine.server.sorting import HEAP, put, take_out
from engine.server.state import WAITING, Plan, View

KEYED = np.dtype(
    [
        ("heap", HEAP),  # smaller keys first, then earlier arrivals
        ("left", "i8"),  # of line k: the k-th request that the heap has lost to a plan
    ],
    align=True,
)
"""What is remembered of a request."""

KEYS = np.dtype(
    [
        ("heaped", "i8"),  # requests in the heap
        ("left", "i8"),  # that it has lost to a plan, and the number of that plan
        ("left_to", "i8"),
        ("seen", SEEN),
        ("lost", "i8"),  # of this plan: requests at the head of the queue that have lost their KV,
        ("first", "i8"),  # and the first one that has arrived since
    ],
    align=True,
)
"""What is remembered of the server."""


class Keyed(NamedTuple):
    """The queue in the memory of a policy."""

    row: Any  # KEYS
    request: Any  # KEYED[requests]


@inner
def count_newcomers(view: View, keyed: Keyed) -> int:
    """How many have come to the queue since the last plan; `newcomer` says who."""
    row = keyed.row
    row.lost, row.first = look_at_queue(view, row.seen)
    return int(row.lost + view.row[0].next_arrival - row.first)


@inner
def newcomer(view: View, keyed: Keyed, k: int) -> int:
    """The k-th of them, first those that have lost their KV."""
    return int(view.queue[k]) if k < keyed.row.lost else int(keyed.row.first + k - keyed.row.lost)


@inner
def queue_by(view: View, keyed: Keyed, i: int, key: float) -> None:
    """Let request `i` wait with this key, if it waits at all."""
    if view.request[i].status == WAITING:
        heap = keyed.request.heap
        heap[i].key, heap[i].tie = key, i
        keyed.row.heaped = put(heap, keyed.row.heaped, i)


@inner
def first_by_key(view: View, plan: Plan, keyed: Keyed) -> int:
    """The first of the queue that this plan has not taken, -1 if there is none."""
    row, heap, number = keyed.row, keyed.request.heap, plan.draft[0].number
    if row.left_to != number:
        left, row.left, row.left_to = row.left, 0, number
        for k in range(left):
            i = keyed.request[k].left
            if view.request[i].status == WAITING and heap[i].place == 0:
                row.heaped = put(heap, row.heaped, i)
    while row.heaped > 0:
        i = heap[0].listed
        waits = view.request[i].status == WAITING
        if waits and not is_named(plan, i):
            return int(i)
        row.heaped = take_out(heap, row.heaped, i)
        if waits and row.left < keyed.request.shape[0]:
            keyed.request[row.left].left = i
            row.left += 1
    return -1
