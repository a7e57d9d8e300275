"""Codecs that know something of the queue, and whether that is sound after something else has written it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from engine.compiled.jit import hot, inner
from engine.compiled.records import cells_of, record, records
from engine.server.queue import QUEUE, QUEUED, Queue
from llmsched_env.actions.action import LEVELS, Codec

_row, _requests = record(QUEUE), records(QUEUED)


@inner
def _counts_are_sound(q: np.record, n: int) -> bool:
    """No number below 0, and none that is a request or a number of requests above theirs."""
    found = min(q.order, q.heap_order, q.lost, q.heap_lost, q.fronted, q.left_to) >= 0
    least = min(q.best, q.waiting, q.arrivals, q.heaped, q.heap_arrivals, q.left)
    most = max(q.best, q.waiting, q.arrivals, q.heaped, q.heap_arrivals, q.left)
    return found and 0 <= least and most <= n and q.best < n


@inner
def _lists_are_sound(queue: Queue) -> bool:
    """The heap of the queue and the list of who left it: every entry a request, at the place that it says."""
    q, lines, heap = queue.row, queue.request, queue.request.heap
    n = lines.shape[0]
    for k in range(q.left):
        if not 0 <= lines[k].left < n:
            return False
    for k in range(q.heaped):
        i = heap[k].listed
        if not 0 <= i < n or heap[i].place != k + 1:
            return False
    for i in range(n):
        if not 0 <= heap[i].place <= q.heaped:
            return False
    return True


@hot
def queue_is_sound(cells: np.ndarray, request: np.ndarray) -> bool:
    """What is known of the queue.

    Args:
        cells: row memory, from where the QUEUE is.
        request: memory of the requests, from where QUEUED is.
    """
    queue = Queue(_row(cells), _requests(request))
    return bool(_counts_are_sound(queue.row, request.shape[0]) and _lists_are_sound(queue))


@dataclass(frozen=True)
class QueueCodec(Codec):
    """A codec whose own cells begin with what it knows of the queue."""

    request_memory: ClassVar[int] = cells_of(QUEUED)
    own_cells: ClassVar[int] = cells_of(QUEUE)

    def is_sound(self, cells: np.ndarray, request: np.ndarray) -> bool:
        """Whether the memory of the queue is in range."""
        return bool(queue_is_sound(cells[LEVELS + len(self.sizes) :], request))
