"""Whether a codec's memory of the queue is sound: what it indexes with, after something else has written it."""

import numpy as np

from baselines._fill import BEST, LEFT_STAMP, NUM_HEAPED, NUM_LEFT, SEEN_ARRIVALS, SEEN_EVICTIONS, SEEN_ORDER
from baselines._fill import HEAP as FILL_HEAP
from baselines._fill import LEFT as FILL_LEFT
from baselines.families.heap import PLACE
from engine.compiled.jit import hot


@hot
def _heap_is_sound(cells: np.ndarray, request: np.ndarray) -> bool:
    """The heap of the queue and the list of who left it: every entry a request, at the place that it says."""
    n = request.shape[0]
    for k in range(NUM_HEAPED, LEFT_STAMP + 1):
        if not 0.0 <= cells[k] < 2.0**53:
            return False
    if cells[NUM_HEAPED] > n or cells[NUM_LEFT] > n:
        return False
    for k in range(int(cells[NUM_LEFT])):
        if not 0.0 <= request[k, FILL_LEFT] < n:
            return False
    for k in range(int(cells[NUM_HEAPED])):
        i = request[k, FILL_HEAP]
        if not 0.0 <= i < n or request[int(i), FILL_HEAP + PLACE] != k + 1:
            return False
    for i in range(n):
        if not 0.0 <= request[i, FILL_HEAP + PLACE] <= cells[NUM_HEAPED]:
            return False
    return True


@hot
def queue_is_sound(cells: np.ndarray, request: np.ndarray) -> bool:
    """What is known of the queue.

    Args:
        cells: row memory.
        request: memory of the requests.
    """
    n = request.shape[0]
    for k in range(SEEN_ARRIVALS, SEEN_ORDER):
        if cells[k] < 0 or (k < SEEN_EVICTIONS and cells[k] > n):
            return False
    return bool(cells[BEST] >= -1 and cells[BEST] < n and _heap_is_sound(cells, request))
