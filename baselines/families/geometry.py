"""Admission by the KV that requests are predicted to hold, as papers on the geometry of KV have it."""

from typing import Any, NamedTuple

import numpy as np

from baselines.families.keyed import KEYED, KEYS, Keyed, count_newcomers, first_by_key, newcomer, queue_by
from baselines.families.peak import add_to_future, capacity_tokens, own_maximum, peak_tokens
from engine.compiled.jit import inner
from engine.compiled.records import record, records
from engine.demand.requests import INT32_MAX
from engine.server.moves import admit
from engine.server.plan import drop
from engine.server.sorting import SORTED
from engine.server.state import Plan, View

REQUEST = np.dtype([("queued", KEYED), ("future", SORTED), ("raised", "f8")], align=True)
"""What is remembered of a request: its place in the queue, in an assumed future, and the output that it is known to
reach at least (tokens)."""
of_server, of_requests = record(KEYS), records(REQUEST)


class Shape(NamedTuple):
    """What one plan is made with."""

    queue: Keyed
    request: Any  # REQUEST[requests]
    share: float  # of a predicted output that is believed
    budget: int  # tokens


@inner
def believed(row: np.record, r: np.record, share: float, raised: float) -> int:
    """Output tokens that a request is believed to have in all: more than it has, at most what the model holds."""
    output = max(share * r.prediction, raised) if r.prediction > 0.0 else float(INT32_MAX)
    return min(max(int(output), r.generated + 1), own_maximum(row, r, INT32_MAX))


@inner
def believed_of(view: View, shape: Shape, i: int) -> int:
    """The same of request `i`."""
    return believed(view.row[0], view.request[i], shape.share, shape.request[i].raised)


@inner
def queue_by_output(view: View, shape: Shape) -> None:
    """Let those who have come since the last plan wait by the output that they are believed to have."""
    for k in range(count_newcomers(view, shape.queue)):
        i = newcomer(view, shape.queue, k)
        queue_by(view, shape.queue, i, float(believed_of(view, shape, i)))


@inner
def next_newcomer(view: View, plan: Plan, shape: Shape) -> int:
    """The first of the queue while tokens and seats last, -1 if there is none; over-long prompts are dropped."""
    while plan.draft[0].tokens < shape.budget and plan.draft[0].seats < view.row[0].max_num_seqs:
        i = first_by_key(view, plan, shape.queue)
        if i < 0 or view.request[i].prompt <= view.row[0].max_model_len:
            return i
        drop(plan, i)
    return -1


@inner
def admit_by_peak(view: View, plan: Plan, shape: Shape, last: int) -> None:
    """Newcomers in the order of the queue while the KV fits at every moment at which one is believed to end.

    Args:
        view: the server.
        plan: has the batch of those who run.
        shape: queue, bounds and budget.
        last: of `running`, those that hold KV still.
    """
    row, n, draft = view.row[0], 0, plan.draft[0]
    i = next_newcomer(view, plan, shape)
    if i < 0:
        return
    for j in range(last):
        v = view.running[j]
        add_to_future(view, shape.request.future, n, v, believed_of(view, shape, v))
        n += 1
    while i >= 0:
        add_to_future(view, shape.request.future, n, i, believed_of(view, shape, i))
        if n > 0 and peak_tokens(view, shape.request.future, n + 1) > capacity_tokens(row):
            return
        if not admit(view, plan, i, shape.budget - draft.tokens):
            return
        n += 1
        i = next_newcomer(view, plan, shape)
