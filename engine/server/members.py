"""Lists of requests that a policy keeps from one plan to the next, and what is new in the queue since the last one.

As `engine.server.sorting`: a policy puts MEMBER into its record of a request and hands over that field of its records;
the caller keeps the length.
"""

import numpy as np

from engine.compiled.jit import inner
from engine.server.state import RUNNING, WAITING, View

MEMBER = np.dtype(
    [
        ("listed", "i8"),  # of line k: the request at place k of the list
        ("is_listed", "i8"),  # of line i: whether request i is on it
    ],
    align=True,
)
"""A list of requests."""

SEEN = np.dtype(
    [
        ("arrivals", "i8"),  # requests that had arrived
        ("lost", "i8"),  # times that KV had been lost
    ],
    align=True,
)
"""The queue when a policy last looked at it."""


@inner
def is_present(r: np.record) -> bool:
    """Whether a request waits or holds KV."""
    return bool(r.status == WAITING or r.status == RUNNING)


@inner
def join(members: np.ndarray, n: int, i: int) -> int:
    """Put request `i`, which is not on it, at the end of the list of `n`; returns the length of the list."""
    members[n].listed = i
    members[i].is_listed = 1
    return n + 1


@inner
def keep_present(view: View, members: np.ndarray, n: int) -> int:
    """Take those who have left the server off the list of `n`; returns the length of the list."""
    kept = 0
    for k in range(n):
        i = members[k].listed
        if is_present(view.request[i]):
            members[kept].listed = i
            kept += 1
        else:
            members[i].is_listed = 0
    return kept


@inner
def look_at_queue(view: View, seen: np.record) -> tuple[int, int]:
    """What the queue has got since the last look, whoever planned in between.

    Returns:
        (how many at its head have lost their KV, the first request that has arrived since).
    """
    row, first = view.row[0], seen.arrivals
    lost = min(row.evictions + row.swaps - seen.lost, row.num_waiting)
    seen.arrivals, seen.lost = row.next_arrival, row.evictions + row.swaps
    return lost, first
