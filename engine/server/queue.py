"""The waiting queue as a plan sees it: who comes next, in which order.

What the plan takes the KV of waits at the head of the queue from then on, the last victim first. In another order than
arrival, the next request of a short queue is found by looking at all of it; a long one is kept in a heap, as what it
costs to look at thousands at every admission would be more than all the rest.
"""

from typing import Any, NamedTuple

import numpy as np

from engine.compiled.jit import inner
from engine.server.plan import is_named
from engine.server.sorting import HEAP, put, take_out
from engine.server.state import WAITING, Plan, View

FCFS = 0
"""Order of the queue: by arrival."""
SPF = 1
"""Order of the queue: shortest prompt first."""
STRICT_SPF = 2
"""Order of the queue: strict tier first, and then shortest prompt."""
WEIGHED = 3
"""Order of the queue: fewest tokens first, as `weighed` counts them."""

SHORT_QUEUE = 64
"""Waiting requests up to which the next one is found without a heap."""

QUEUE = np.dtype(
    [
        ("ageing", "f8"),  # weights of WEIGHED, which stay the same for a run
        ("foresight", "f8"),
        ("best", "i8"),  # the first of a short queue, and the queue for which that was found:
        ("order", "i8"),
        ("waiting", "i8"),  # its length, 0: nothing was found
        ("arrivals", "i8"),  # requests that had arrived
        ("lost", "i8"),  # times that KV had been lost
        ("heaped", "i8"),  # length of a long queue's heap, and the queue for which that holds:
        ("heap_order", "i8"),  # FCFS: there is no heap
        ("heap_arrivals", "i8"),
        ("heap_lost", "i8"),
        ("fronted", "i8"),  # requests that went to the head of the queue since the heap was built
        ("left", "i8"),  # requests that the heap has lost to a plan, and the number of that plan
        ("left_to", "i8"),
    ],
    align=True,
)
"""What is remembered of the queue for a server."""

QUEUED = np.dtype(
    [
        ("left", "i8"),  # of line k: the k-th request that the heap has lost to a plan
        ("heap", HEAP),
    ],
    align=True,
)
"""What is remembered of the queue for each request."""


class Queue(NamedTuple):
    """The memory of the waiting queue, for `next_waiting` and all that admits by it."""

    row: Any  # QUEUE, in the policy's memory of the server
    request: Any  # QUEUED[requests], in its memory of the requests


@inner
def weighed(queue: Queue, r: np.record, tokens: int) -> float:
    """Prompt tokens, `ageing` less for each second since the arrival, `foresight` more for each predicted output token.

    The present time, the same for all, is left out.
    """
    found = tokens + queue.row.ageing * r.arrival
    if queue.row.foresight > 0.0:
        found += queue.row.foresight * r.prediction
    return float(found)


@inner
def first_waiting(view: View, plan: Plan) -> int:
    """The request that a queue in order of arrival would serve next, -1 if none is left."""
    d = plan.draft[0]
    if d.taken < d.victims:
        return plan.victim[d.victims - 1 - d.taken]
    k = d.taken - d.victims
    return view.queue[k] if k < view.row[0].num_waiting else -1


@inner
def next_waiting(view: View, plan: Plan, queue: Queue, order: int) -> int:
    """The request that the queue would serve next, -1 if none is left.

    Args:
        view: the server.
        plan: has taken some of the queue already, and has put its victims there.
        queue: the policy's memory of the queue.
        order: FCFS, SPF, STRICT_SPF or WEIGHED.
    """
    row, d, q = view.row[0], plan.draft[0], queue.row
    if order == FCFS:
        return first_waiting(view, plan)
    if d.victims + row.num_waiting <= d.taken:
        return -1
    if row.num_waiting <= SHORT_QUEUE:
        q.heap_order = FCFS
        return _first_of_few(view, plan, queue, order)
    q.waiting = 0
    return _first_of_many(view, plan, queue, order)


@inner
def _precedes(view: View, queue: Queue, order: int, i: int, j: int) -> bool:
    """Whether request i goes strictly before request j in this order (position in the queue breaks ties)."""
    a, b = view.request[i], view.request[j]
    if order == STRICT_SPF and a.strict != b.strict:
        return bool(a.strict > b.strict)
    if order == WEIGHED:
        return weighed(queue, a, a.prompt) < weighed(queue, b, b.prompt)
    return bool(a.prompt < b.prompt)


@inner
def _first_victim(view: View, plan: Plan, queue: Queue, order: int) -> int:
    """The first of the plan's victims that it does not serve again, -1 if there is none."""
    best = -1
    for k in range(plan.draft[0].victims - 1, -1, -1):
        i = plan.victim[k]
        if not is_named(plan, i) and (best < 0 or _precedes(view, queue, order, i, best)):
            best = i
    return best


@inner
def _first_of_few(view: View, plan: Plan, queue: Queue, order: int) -> int:
    """First request in an order; looks only at new arrivals while the queue has not lost anybody."""
    row, q, victims = view.row[0], queue.row, plan.draft[0].victims
    best, first = q.best, q.waiting
    only_arrivals = row.num_waiting - q.waiting == row.next_arrival - q.arrivals
    intact = victims == 0 and first > 0 and only_arrivals and q.lost == row.evictions + row.swaps and q.order == order
    if not intact or is_named(plan, best):
        best, first = _first_victim(view, plan, queue, order), 0
    for k in range(first, row.num_waiting):
        i = view.queue[k]
        if not is_named(plan, i) and (best < 0 or _precedes(view, queue, order, i, best)):
            best = i
    q.best, q.order = max(best, 0), order
    q.waiting = row.num_waiting if victims == 0 and best >= 0 else 0
    q.arrivals, q.lost = row.next_arrival, row.evictions + row.swaps
    return best


@inner
def _first_of_many(view: View, plan: Plan, queue: Queue, order: int) -> int:
    """As `_first_of_few`, from the heap: first among equals are this plan's victims, the last one before the others."""
    _update_heap(view, plan, queue, order)
    best, i = _first_victim(view, plan, queue, order), _top(view, plan, queue)
    return i if i >= 0 and (best < 0 or _precedes(view, queue, order, i, best)) else best


@inner
def _heap_up(view: View, queue: Queue, order: int, i: int, tie: float) -> None:
    """Put request `i` into the heap; among equals the smallest `tie` goes first."""
    q, r, h = queue.row, view.request[i], queue.request.heap[i]
    h.key = float(r.prompt)
    if order == WEIGHED:
        h.key = weighed(queue, r, r.prompt)
    elif order == STRICT_SPF:
        h.key -= r.strict * 2.0**32
    h.tie = tie
    q.heaped = put(queue.request.heap, q.heaped, i)


@inner
def _build_heap(view: View, queue: Queue, order: int) -> None:
    q, heap, row = queue.row, queue.request.heap, view.row[0]
    for k in range(q.heaped):
        heap[heap[k].listed].place = 0
    q.heaped, q.heap_order, q.fronted, q.left = 0, order, 0, 0
    q.heap_arrivals, q.heap_lost = row.next_arrival, row.evictions + row.swaps
    for k in range(row.num_waiting):
        _heap_up(view, queue, order, view.queue[k], float(k))


@inner
def _is_outside(view: View, queue: Queue, i: int) -> bool:
    """Whether request `i` waits and is not in the heap."""
    return bool(view.request[i].status == WAITING and queue.request.heap[i].place == 0)


@inner
def _update_heap(view: View, plan: Plan, queue: Queue, order: int) -> None:
    """Put into the heap who waits since the last plan: evicted requests, arrivals, and who was taken but not served."""
    q, row, number = queue.row, view.row[0], plan.draft[0].number
    lost = row.evictions + row.swaps
    if q.heap_order != order:
        _build_heap(view, queue, order)
    for k in range(min(lost - q.heap_lost, row.num_waiting) - 1, -1, -1):
        q.fronted += 1
        _heap_up(view, queue, order, view.queue[k], -float(q.fronted))
    for i in range(q.heap_arrivals, row.next_arrival):
        if _is_outside(view, queue, i):
            _heap_up(view, queue, order, i, float(row.num_requests + i))
    q.heap_arrivals, q.heap_lost = row.next_arrival, lost
    if q.left_to != number:
        for k in range(q.left):
            i = queue.request[k].left
            if _is_outside(view, queue, i):
                _heap_up(view, queue, order, i, queue.request.heap[i].tie)
        q.left_to, q.left = number, 0


@inner
def _top(view: View, plan: Plan, queue: Queue) -> int:
    """The first of the heap that this plan has not taken, -1 if there is none."""
    q, heap = queue.row, queue.request.heap
    while q.heaped > 0:
        i = heap[0].listed
        waits = view.request[i].status == WAITING
        if waits and not is_named(plan, i):
            return i
        q.heaped = take_out(heap, q.heaped, i)
        if waits and q.left < queue.request.shape[0]:
            queue.request[q.left].left = i
            q.left += 1
    return -1
