"""What is learnt from requests that have finished: who they are, and the last values of something, in order."""

from typing import Any, NamedTuple

import numpy as np

from engine.compiled.jit import inner
from engine.server.members import MEMBER, join
from engine.server.plan import is_named
from engine.server.state import DROPPED, FINISHED, Plan, View

SERVED = np.dtype(
    [
        ("member", MEMBER),  # those that have been served and have not left
        ("gone", "i8"),  # of line k: the k-th request that has finished since the last look
    ],
    align=True,
)
"""What is remembered of a request."""
SERVING = np.dtype([("members", "i8"), ("finished", "i8")], align=True)
"""What is remembered of the server: how many are on that list, and how many had finished at the last look."""

RING = np.dtype([("held", "i8"), ("oldest", "i8")], align=True)
"""What is remembered of the last values: how many there are, and the place of the oldest."""
VALUE = np.dtype([("came", "f8"), ("ranked", "f8")], align=True)
"""One of them: of line k, the value at place k of a ring, and the k-th smallest."""


class Served(NamedTuple):
    """Who is served, in the memory of a policy."""

    row: Any  # SERVING
    request: Any  # SERVED[requests]


class Recent(NamedTuple):
    """The last values of something, in the memory of a policy."""

    row: Any  # RING
    value: Any  # VALUE[size]
    size: int


@inner
def count_finished(view: View, served: Served) -> int:
    """How many of those served have finished since the last look; the `gone` of the first lines says who."""
    row, lines = served.row, served.request
    if row.finished == view.row[0].finished:
        return 0
    row.finished = view.row[0].finished
    kept, gone = 0, 0
    for k in range(row.members):
        i = lines.member[k].listed
        status = view.request[i].status
        if status == FINISHED:
            lines[gone].gone = i
            gone += 1
        if status == FINISHED or status == DROPPED:
            lines.member[i].is_listed = 0
        else:
            lines.member[kept].listed = i
            kept += 1
    row.members = kept
    return gone


@inner
def watch_served(view: View, plan: Plan, served: Served) -> None:
    """Watch those whom this plan serves; the last thing that a policy does."""
    row, lines = served.row, served.request
    for k in range(plan.size[0]):
        i = plan.entry[k].request
        if plan.entry[k].tokens > 0 and lines.member[i].is_listed == 0 and is_named(plan, i):
            row.members = join(lines.member, row.members, i)


@inner
def _place(recent: Recent, value: float) -> int:
    """The place of the first ranked value that is not below `value`."""
    low, high = 0, int(recent.row.held)
    while low < high:
        middle = (low + high) // 2
        if recent.value[middle].ranked < value:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def remember_value(recent: Recent, value: float) -> None:
    """Append a value; the oldest one leaves when there are `size` of them."""
    row, values = recent.row, recent.value
    if row.held == recent.size:
        row.held -= 1
        for k in range(_place(recent, values[row.oldest].came), row.held):
            values[k].ranked = values[k + 1].ranked
    k = row.held
    while k > 0 and values[k - 1].ranked > value:
        values[k].ranked = values[k - 1].ranked
        k -= 1
    values[k].ranked = value
    values[row.oldest].came = value
    row.held += 1
    row.oldest = (row.oldest + 1) % recent.size
