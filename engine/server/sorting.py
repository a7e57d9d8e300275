"""Requests in order: a sorted list and a heap, in the cells that a policy remembers for each request.

Kernels cannot make arrays, so both live in the lines of the request memory, by name: a policy puts SORTED or HEAP into
its record and hands over that field of its records (`engine.compiled.records.records`). The caller keeps the length.
"""

import numpy as np

from engine.compiled.jit import inner

SORTED = np.dtype(
    [
        ("listed", "i8"),  # of line k: the request at place k of the list
        ("key", "f8"),  # of line i: what request i is sorted by, smaller goes first
    ],
    align=True,
)
"""A sorted list of requests, for short ones."""

HEAP = np.dtype(
    [
        ("listed", "i8"),  # of line k: the request at place k of the heap
        ("place", "i8"),  # of line i: where request i is in it, from 1, the top; 0: outside
        ("key", "f8"),  # of line i: smaller goes first
        ("tie", "f8"),  # of line i: then this, smaller goes first
    ],
    align=True,
)
"""A priority queue of requests from which anybody can be taken; every change costs O(log n)."""


@inner
def insert_sorted(lines: np.ndarray, n: int, i: int) -> None:
    """Insert request `i` into the sorted list of `n`; among equals it comes last.

    Args:
        lines: SORTED[requests]; the key of request `i` is set already.
        n: length of the list before.
        i: the request.
    """
    key, k = lines[i].key, n
    while k > 0 and lines[lines[k - 1].listed].key > key:
        lines[k].listed = lines[k - 1].listed
        k -= 1
    lines[k].listed = i


@inner
def before(heap: np.ndarray, i: int, j: int) -> bool:
    """Whether request `i` goes before request `j`."""
    a, b = heap[i], heap[j]
    return bool(a.key < b.key or (a.key == b.key and a.tie < b.tie))


@inner
def _rise(heap: np.ndarray, k: int, i: int) -> int:
    """Move request `i` up from place `k` (from 0) as far as it goes; returns where it is."""
    while k > 0:
        above = (k - 1) >> 1
        j = heap[above].listed
        if not before(heap, i, j):
            break
        heap[k].listed = j
        heap[j].place = k + 1
        k = above
    heap[k].listed = i
    heap[i].place = k + 1
    return k


@inner
def _sink(heap: np.ndarray, n: int, k: int, i: int) -> None:
    """Move request `i` down from place `k` (from 0) as far as it goes."""
    while 2 * k + 1 < n:
        below = 2 * k + 1
        if below + 1 < n and before(heap, heap[below + 1].listed, heap[below].listed):
            below += 1
        j = heap[below].listed
        if not before(heap, j, i):
            break
        heap[k].listed = j
        heap[j].place = k + 1
        k = below
    heap[k].listed = i
    heap[i].place = k + 1


@inner
def put(heap: np.ndarray, n: int, i: int) -> int:
    """Put request `i` into the heap, or where it belongs if it is in it.

    Args:
        heap: HEAP[requests]; key and tie of request `i` are set already.
        n: length of the heap before.
        i: the request.

    Returns:
        The length of the heap.
    """
    place = heap[i].place
    if place == 0:
        n += 1
        place = n
    k = _rise(heap, place - 1, i)
    if k == place - 1:
        _sink(heap, n, k, i)
    return n


@inner
def take_out(heap: np.ndarray, n: int, i: int) -> int:
    """Take request `i` out of the heap of `n` if it is in it; returns the length of the heap."""
    place = heap[i].place
    if place == 0:
        return n
    heap[i].place = 0
    n -= 1
    last = heap[n].listed
    if last != i:
        heap[last].place = place
        put(heap, n, last)
    return n
