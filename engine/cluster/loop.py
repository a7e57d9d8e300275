"""The compiled loop over a trace in front of a cluster.

Between two arrivals the replicas know nothing of each other, so each goes on by itself until the next arrival: no order
of events has to be kept. At an arrival the router sees every replica as it is then; of one that runs a batch that is
the state in which the batch began. The request is appended to what the replica has got, and is queued there as in
`engine.runs.simulate`: at the end of the batch that runs, or at once.

A replica does what `simulate` does with the requests that it gets, bit for bit: it plans at the same times, with the
same requests in sight. That there may be another request is what it knows of the future, until the trace has ended.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from engine.cluster.load import begun, ended, enter
from engine.cluster.router import ROUTE_SIGNATURE
from engine.cluster.state import (
    ARRIVALS_TYPE,
    FLEET_TYPE,
    HALTED,
    IDLE,
    PLANNING,
    ROUTER_MEMORY_TYPE,
    ROUTER_VIEW_TYPE,
    RUNNING,
    SLEEPING,
    Arrivals,
    Fleet,
    RouterMemory,
    RouterView,
)
from engine.compiled.jit import hot, inner
from engine.device.latency import Latency, iteration_seconds
from engine.runs.pieces import PAUSED, second
from engine.runs.steps import KERNEL_TYPE, OVER, STALLED
from engine.server.core import arrive, begin, empty, finish, idle, plans_again
from engine.server.kv import let_go
from engine.server.plan import releases
from engine.server.rows import row_of
from engine.server.state import Memory, Server

ASKS, NOWHERE = -5, -6
"""How a piece of the loop ends, too: a router in Python is to choose; a router chose no replica that there is."""


@inner
def _memory_of(fleet: Fleet, j: int) -> Memory:
    """What the policy of replica `j` remembers."""
    c, m = fleet.clock[j], fleet.memories
    return Memory(
        m.params[c.params : c.params + c.num_params],
        m.request[c.lines : c.lines + fleet.servers.visible.request.shape[1] * c.width].reshape(
            (fleet.servers.visible.request.shape[1], c.width)
        ),
        m.row[c.row : c.row + c.num_row],
    )


@inner
def latency_of(fleet: Fleet, j: int) -> Latency:
    """The latency model of replica `j`."""
    c = fleet.clock[j]
    return Latency(fleet.coefficient[j : j + 1], fleet.table[c.table : c.table + c.num_table])


@inner
def _plan(kernel: Callable[..., Any], server: Server, memory: Memory, load: np.record) -> int:
    """Let a policy plan, and begin that; returns the error code of `begin`."""
    waiting = server.visible.row[0].num_waiting
    empty(server)
    kernel(server.visible, memory, server.plan)
    code = begin(server, True)
    begun(server, load, waiting)
    return code


@inner
def set_clock(server: Server, latency: Latency, c: np.record) -> None:
    """When the replica goes on after a plan that `begin` has taken."""
    row = server.visible.row[0]
    if server.features[0].requests > 0:
        c.doing, c.seconds = RUNNING, iteration_seconds(latency, server.features)
        c.due = row.now + c.seconds
    elif plans_again(server):
        let_go(row)
        c.doing, c.due = PLANNING, row.now
    else:
        c.doing, c.due = SLEEPING, server.plan.wake[0]
        if row.next_arrival < row.num_requests:
            c.due = min(c.due, server.visible.request[row.next_arrival].arrival)


@inner
def go_on(server: Server, load: np.record, c: np.record, horizon: float) -> bool:
    """Let that happen for which the replica is due; whether it plans then."""
    row = server.visible.row[0]
    if c.doing == RUNNING:
        finish(server, c.seconds)
        ended(server, load)
    elif c.doing == SLEEPING:
        idle(server)
    else:
        arrive(server)
    if row.finished + row.dropped == load.sent:
        c.doing = IDLE
    elif row.now >= horizon:
        c.doing = HALTED
    else:
        return True
    c.due = np.inf
    return False


@inner
def _is_stuck(server: Server, c: np.record) -> bool:
    """At the end of the trace: whether a replica waits for something that will not come.

    One whose plan changed something without a batch, and which has only waited for the next arrival, plans again.
    """
    if c.doing != SLEEPING or c.due < np.inf:
        return False
    c.doing, c.due = PLANNING, server.visible.row[0].now
    return not releases(server.plan)


@inner
def _is_time_out(course: np.record) -> bool:
    """Whether this piece of the loop ends: enough plans, or another second has begun."""
    n = course.decisions
    return bool(n >= course.stop or (n & 63 == 63 and n > course.before and second(0) != course.second))


@inner
def _reach(kernels: tuple[Any, ...], fleet: Fleet, j: int, time: float) -> int:
    """Let replica `j` go on with all that happens before `time` (inf: the trace has ended)."""
    server, memory, latency = row_of(fleet.servers, j), _memory_of(fleet, j), latency_of(fleet, j)
    c, load, course = fleet.clock[j], fleet.load[j], fleet.course[0]
    course.replica = j
    while True:
        if time == np.inf and _is_stuck(server, c):
            return STALLED
        if not c.due < time:
            return OVER
        if _is_time_out(course):
            return PAUSED
        if go_on(server, load, c, course.horizon):
            course.decisions += 1
            code = _plan(kernels[c.kernel], server, memory, load)
            if code != 0:
                return code
            set_clock(server, latency, c)


@inner
def reach_all(kernels: tuple[Any, ...], fleet: Fleet, time: float) -> int:
    """Let every replica go on until `time`; the first code that is not OVER stops it."""
    for j in range(fleet.clock.shape[0]):
        if fleet.clock[j].due < time or time == np.inf:
            code = _reach(kernels, fleet, j, time)
            if code != OVER:
                return code
    return OVER


@inner
def report_all(fleet: Fleet, view: RouterView, time: float) -> None:
    """Let the replicas report what they are like."""
    view.row[0].as_of = time
    for j in range(view.replica.shape[0]):
        r, load, row = view.replica[j], fleet.load[j], fleet.servers.visible.row[j, 0]
        r.reported, r.unanswered_then = load.sent, load.unanswered
        r.running = row.num_running
        r.waiting = load.sent - row.finished - row.dropped - row.num_running
        r.prompt_left, r.blocks_wanted = load.prompt_left, load.blocks_wanted
        r.predicted, r.unpredicted, r.generated = load.predicted, load.unpredicted, load.generated
        r.free_blocks, r.batch_s = row.free_blocks, row.last_duration


@inner
def end_of_trace(fleet: Fleet) -> None:
    """No request will come any more."""
    for j in range(fleet.clock.shape[0]):
        row = fleet.servers.visible.row[j, 0]
        row.num_requests, row.released = fleet.load[j].sent, fleet.load[j].sent


@inner
def next_stop(fleet: Fleet, trace: Arrivals) -> tuple[float, bool]:
    """Until when the replicas go on by themselves, and whether they report then.

    That is a report that lies before the next arrival, the arrival, or their end.
    """
    course = fleet.course[0]
    if course.next == trace.request.shape[0]:
        end_of_trace(fleet)
        return np.inf, False
    arrival = trace.request[course.next].arrival
    if course.age == 0.0:
        return arrival, True
    report = min(arrival, np.floor(arrival / course.age) * course.age)
    is_due = report > course.reported
    return (report if is_due else arrival), is_due


@inner
def look(fleet: Fleet, view: RouterView, time: float) -> None:
    """Show the router its own counts as they are now."""
    view.row[0].now = time
    for j in range(view.replica.shape[0]):
        r, load, row = view.replica[j], fleet.load[j], fleet.servers.visible.row[j, 0]
        r.sent, r.in_flight = load.sent, load.sent - row.finished - row.dropped
        r.unanswered = load.unanswered


@inner
def send(fleet: Fleet, trace: Arrivals, j: int) -> None:
    """Send the next request to replica `j`."""
    course, load, c = fleet.course[0], fleet.load[j], fleet.clock[j]
    i, k, servers = course.next, load.sent, fleet.servers
    row, request = servers.visible.row[j, 0], servers.visible.request
    request[j, k] = trace.request[i]
    servers.hidden.ledger[j, k] = trace.ledger[i]
    servers.hidden.output[j, k] = trace.output[j, i]
    enter(load, request[j, k], row.block_size)
    course.next += 1
    is_last = course.next == trace.request.shape[0]
    if not is_last:
        request[j, k + 1].arrival = np.inf  # of the request that may come
    row.num_requests = k + 1 if is_last else k + 2
    trace.replica[i] = j
    if c.doing == IDLE:
        c.doing, c.due = PLANNING, row.now
    elif c.doing == SLEEPING:
        c.due = min(c.due, request[j, k].arrival)


@inner
def stop_at(fleet: Fleet, trace: Arrivals, view: RouterView, time: float, reports: bool) -> bool:
    """Let the replicas, which have gone on until a stop (`next_stop`), report, and show the router who arrives then.

    Returns:
        Whether a request arrives.
    """
    course = fleet.course[0]
    if reports:
        report_all(fleet, view, time)
        course.reported = time
    if time < trace.request[course.next].arrival:
        return False
    view.request[0], view.row[0].index = trace.request[course.next], course.next
    look(fleet, view, time)
    return True


@inner
def to_arrival(kernels: tuple[Any, ...], fleet: Fleet, trace: Arrivals, view: RouterView) -> int:
    """Go on until a request arrives and show it to the router (ASKS), or to the end or whatever else stops it."""
    while True:
        time, reports = next_stop(fleet, trace)
        code = reach_all(kernels, fleet, time)
        if code != OVER or time == np.inf:
            return code
        if stop_at(fleet, trace, view, time, reports):
            return ASKS


def _run(
    route: Callable[..., int],
    kernels: tuple[Any, ...],
    fleet: Fleet,
    trace: Arrivals,
    view: RouterView,
    memory: RouterMemory,
    asks: bool,
) -> int:
    """Go on until the trace, the first error or this piece ends; called again, it goes on from there.

    With `asks` it ends at every arrival with ASKS, and finds the router's choice in the course when it goes on.
    """
    course = fleet.course[0]
    course.second, course.before = second(0), course.decisions
    while True:
        if course.choice < 0:
            code = to_arrival(kernels, fleet, trace, view)
            if code != ASKS or asks:
                return code
            course.replica = -1
            course.choice = route(view, memory)
        if not 0 <= course.choice < fleet.clock.shape[0]:
            return NOWHERE
        send(fleet, trace, course.choice)
        course.choice = -1


@functools.cache
def compiled_run(kernels: int) -> Any:
    """`_run` for fleets with so many different kernels of policies."""
    arguments = (
        types.FunctionType(ROUTE_SIGNATURE),
        types.UniTuple(KERNEL_TYPE, kernels),
        *(FLEET_TYPE, ARRIVALS_TYPE, ROUTER_VIEW_TYPE, ROUTER_MEMORY_TYPE, types.boolean),
    )
    return hot(_run, types.int64(*arguments))
