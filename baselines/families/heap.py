"""A priority queue of requests in the cells of a policy's memory: a binary heap from which anybody can be taken.

Kernels cannot make arrays, so the heap lives in four columns of the request memory, from column `at` on: who is in it
(``cells[:n, at]``), each request's place in it (1 is the top, 0 is outside), its key, and a number that breaks ties;
smaller goes first. The caller keeps its length. Every change costs O(log n).
"""

import numpy as np

from engine.compiled.jit import inner

PLACE, HEAP_KEY, TIE, HEAP_COLUMNS = 1, 2, 3, 4
"""Columns behind `at`, and how many there are."""


@inner
def before(cells: np.ndarray, at: int, i: int, j: int) -> bool:
    """Whether request `i` goes before request `j`."""
    a, b = cells[i, at + HEAP_KEY], cells[j, at + HEAP_KEY]
    return bool(a < b or (a == b and cells[i, at + TIE] < cells[j, at + TIE]))


@inner
def _rise(cells: np.ndarray, at: int, k: int, i: int) -> int:
    """Move request `i` up from place `k` (from 0) as far as it goes; returns where it is."""
    while k > 0:
        above = (k - 1) >> 1
        j = int(cells[above, at])
        if not before(cells, at, i, j):
            break
        cells[k, at] = j
        cells[j, at + PLACE] = k + 1
        k = above
    cells[k, at] = i
    cells[i, at + PLACE] = k + 1
    return k


@inner
def _sink(cells: np.ndarray, at: int, n: int, k: int, i: int) -> None:
    """Move request `i` down from place `k` (from 0) as far as it goes."""
    while 2 * k + 1 < n:
        below = 2 * k + 1
        if below + 1 < n and before(cells, at, int(cells[below + 1, at]), int(cells[below, at])):
            below += 1
        j = int(cells[below, at])
        if not before(cells, at, j, i):
            break
        cells[k, at] = j
        cells[j, at + PLACE] = k + 1
        k = below
    cells[k, at] = i
    cells[i, at + PLACE] = k + 1


@inner
def put(cells: np.ndarray, at: int, n: int, i: int) -> int:
    """Put request `i` into the heap of `n`, or where it belongs if it is in it; returns the length of the heap.

    The columns of its key and its tie are set already.
    """
    place = int(cells[i, at + PLACE])
    if place == 0:
        n += 1
        place = n
    k = _rise(cells, at, place - 1, i)
    if k == place - 1:
        _sink(cells, at, n, k, i)
    return n


@inner
def take_out(cells: np.ndarray, at: int, n: int, i: int) -> int:
    """Take request `i` out of the heap of `n` if it is in it; returns the length of the heap."""
    place = int(cells[i, at + PLACE])
    if place == 0:
        return n
    cells[i, at + PLACE] = 0.0
    n -= 1
    last = int(cells[n, at])
    if last != i:
        cells[last, at + PLACE] = place
        put(cells, at, n, last)
    return n
