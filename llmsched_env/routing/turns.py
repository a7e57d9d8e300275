"""Clusters in which routers and schedulers decide turn by turn, as one compiled call.

What happens next happens first: of all replicas the one goes on that is due first, until a request arrives (the
router's turn) or a replica is to plan and has something to decide (its turn). Replicas know nothing of each other
between two arrivals, so this is what `engine.cluster.loop` does, in another order: with the same choices every replica
does the same, bit for bit.

A replica is not asked about an empty server, nor, with `skip_decode_only`, about a batch of decodes alone. One whose
plan leads nowhere when no request will come any more plans by the codec's FALLBACK, as in `LLMSched-v0`.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import typeof, types

from engine.cluster.clusters import Cluster, cluster_of
from engine.cluster.load import begun
from engine.cluster.loop import ASKS, go_on, latency_of, next_stop, send, set_clock, stop_at
from engine.cluster.state import SLEEPING, Fleet
from engine.compiled.jit import hot, inner
from engine.runs.steps import KERNEL_TYPE, OVER, STALLED
from engine.server.core import begin, empty
from engine.server.rows import row_of
from llmsched_env.asking import ASKED, NOBODY, due
from llmsched_env.observation import encode, remember
from llmsched_env.planning import memory_of, plan_by_codec, plan_choice
from llmsched_env.routing.step import (
    DONE,
    FAILED,
    Outcome,
    Rules,
    end_step,
    is_all_idle,
    is_closed,
    latest,
    limits_of,
    show_router,
)
from llmsched_env.rows import Memories

SCHEDULES = -7
"""How a piece ends, beside the loop's codes: a replica is to plan."""
FALLS_BACK = 4
"""What a replica plans by, beside what `llmsched_env.asking.due` says: the codec's choice where that led nowhere."""
ROUTER = -1
"""Whose turn it is: the router's; else it is that of the replica of this number."""


class Schedulers(NamedTuple):
    """What the schedulers of the replicas are, and whose turn it is."""

    memories: Memories  # of all replicas of all clusters; its worlds are the places of the replicas
    skips: np.ndarray  # bool[1], whether batches of decodes alone pass by themselves
    sizes: np.ndarray  # int64[dimensions], choices in each dimension of an action
    decodes: np.ndarray  # int64[dimensions of the codec], its choice with which all decodes run and nothing else
    fallback: np.ndarray  # int64[dimensions of the codec], its choice where the learner's leads nowhere
    turn: np.ndarray  # int64[clusters], ROUTER or a replica
    observation: np.ndarray  # float32[clusters, OBSERVATION_SIZE], what the scheduler sees whose turn it is, else 0


class Joint(NamedTuple):
    """Everything that a step reads and writes."""

    clusters: Cluster
    schedulers: Schedulers
    rules: Rules
    outcome: Outcome


@inner
def _first_due(fleet: Fleet, time: float) -> int:
    """The replica that is due first before a time, -1: none is."""
    best = -1
    for j in range(fleet.clock.shape[0]):
        if fleet.clock[j].due < time:
            best, time = j, fleet.clock[j].due
    return best


@inner
def _wake(fleet: Fleet, now: float) -> None:
    """At the end of the trace: let replicas that wait for another request plan again."""
    for j in range(fleet.clock.shape[0]):
        c = fleet.clock[j]
        if c.doing == SLEEPING and c.due == np.inf:
            fleet.servers.plan.wake[j, 0], c.due = now, now


@inner
def _end(cluster: Cluster, horizon: float) -> float:
    """The time of the end, when nothing is due before the horizon."""
    is_last = cluster.fleet.course[0].next == cluster.trace.request.shape[0]
    return latest(cluster) if is_last and is_all_idle(cluster) else horizon


@inner
def _next_event(joint: Joint, cluster: Cluster, e: int, now: float) -> tuple[int, int, float]:
    """Let happen what happens next, until the router or a replica plans.

    Args:
        joint: everything.
        cluster: number `e` of it.
        e: which.
        now: s.

    Returns:
        ASKS, SCHEDULES or OVER, the replica that plans, and the time.
    """
    fleet, horizon = cluster.fleet, limits_of(joint.rules.limits).horizon_s
    horizon = horizon if horizon > 0.0 else np.inf
    while True:
        time, reports = next_stop(fleet, cluster.trace)
        if time == np.inf:
            _wake(fleet, now)
        j = _first_due(fleet, min(time, horizon))
        if j >= 0:
            server, place = row_of(fleet.servers, j), e * fleet.clock.shape[0] + j
            plans = go_on(server, fleet.load[j], fleet.clock[j], np.inf)
            remember(server.visible, memory_of(joint.schedulers.memories, j, place, 0))
            now = max(now, server.visible.row[0].now)
            if plans:
                return SCHEDULES, j, now
        elif horizon <= time:
            return OVER, -1, _end(cluster, horizon)
        elif stop_at(fleet, cluster.trace, cluster.seen, time, reports):
            return ASKS, -1, time


@inner
def _plan(
    kernels: tuple[Any, ...], joint: Joint, fleet: Fleet, j: int, place: int, choice: np.ndarray, what: int
) -> None:
    """Let replica `j` plan by a choice, and begin that.

    Args:
        kernels: that of the action's codec, then those of its arms, if it has any.
        joint: everything.
        fleet: of the replica.
        j: its place there.
        place: its place among all.
        choice: the agent's where `what` is ASKED, else one of the codec's; not read for NOBODY.
        what: as of `llmsched_env.asking.due`, or FALLS_BACK.
    """
    server, memories = row_of(fleet.servers, j), joint.schedulers.memories
    waiting = server.visible.row[0].num_waiting
    empty(server)
    if what == ASKED:
        plan_choice(kernels, server, memories, j, place, choice)
    elif what != NOBODY:
        plan_by_codec(kernels, server, memories, j, place, choice)
    begin(server, False)
    begun(server, fleet.load[j], waiting)
    set_clock(server, latency_of(fleet, j), fleet.clock[j])


@inner
def _is_helpless(cluster: Cluster, j: int) -> bool:
    """Whether replica `j`, which has just planned, waits though nothing will come."""
    c = cluster.fleet.clock[j]
    return bool(
        cluster.fleet.course[0].next == cluster.trace.request.shape[0] and c.doing == SLEEPING and c.due == np.inf
    )


@inner
def _to_turn(
    kernels: tuple[Any, ...], joint: Joint, cluster: Cluster, e: int, first: int, choice: np.ndarray
) -> tuple[int, int, float]:
    """Carry out the choice of replica `first` (ROUTER: there is none), and go on until somebody is asked.

    Returns:
        As `_next_event`, or STALLED with the replica that cannot go on.
    """
    schedulers, now, j, what = joint.schedulers, joint.outcome.now[e], first, ASKED
    while True:
        if j >= 0:
            place = e * cluster.fleet.clock.shape[0] + j
            _plan(kernels, joint, cluster.fleet, j, place, choice, what)
            if _is_helpless(cluster, j):
                if what == FALLS_BACK:
                    return STALLED, j, now
                choice, what = schedulers.fallback, FALLS_BACK
                continue
        code, j, now = _next_event(joint, cluster, e, now)
        if code != SCHEDULES:
            return code, j, now
        row = cluster.fleet.servers.visible.row[j, 0]
        what = due(row, schedulers.skips[0], 0.0)
        if what == ASKED:
            return code, j, now
        choice = schedulers.decodes


@inner
def _show(joint: Joint, cluster: Cluster, e: int) -> None:
    """Write what the one sees whose turn it is; the other part of the observation is zero."""
    schedulers, outcome = joint.schedulers, joint.outcome
    j, out = schedulers.turn[e], schedulers.observation[e]
    show_router(cluster, joint.rules, outcome, e)
    if j == ROUTER:
        out[:] = 0.0
    else:
        place = e * cluster.fleet.clock.shape[0] + j
        outcome.observation[e, :] = 0.0
        server = row_of(cluster.fleet.servers, j)
        encode(server.visible, memory_of(schedulers.memories, j, place, 0), out)


@inner
def _take_turn(kernels: tuple[Any, ...], joint: Joint, action: np.ndarray, e: int, opens: bool) -> bool:
    """Let the one decide in cluster `e` whose turn it is, or open an episode; whether all went well."""
    cluster, turn = cluster_of(joint.clusters, e), joint.schedulers.turn
    if opens:
        joint.outcome.now[e], turn[e] = 0.0, ROUTER
    elif turn[e] == ROUTER:
        send(cluster.fleet, cluster.trace, action[e, 0])
    code, j, now = _to_turn(kernels, joint, cluster, e, turn[e], action[e, 1:])
    joint.outcome.code[e] = code
    if code == STALLED:
        cluster.fleet.course[0].replica = j
        return False
    turn[e] = j
    end_step(cluster, joint.rules, joint.outcome, e, code, now, opens)
    _show(joint, cluster, e)
    return True


@inner
def _is_outside(action: np.ndarray, sizes: np.ndarray) -> bool:
    for d in range(sizes.shape[0]):
        if not 0 <= action[d] < sizes[d]:
            return True
    return False


@inner
def _first_outside(action: np.ndarray, schedulers: Schedulers, mask: np.ndarray) -> int:
    """The first cluster of which the part of the action is not in its space that counts, DONE if there is none."""
    for e in range(mask.shape[0]):
        if schedulers.turn[e] == ROUTER:
            if is_closed(mask[e], action[e, 0]):
                return e
        elif _is_outside(action[e, 1:], schedulers.sizes):
            return e
    return DONE


def _step(kernels: tuple[Any, ...], joint: Joint, action: np.ndarray, opens: int) -> int:
    """Take a turn in every cluster, with action int64[clusters, 1 + dimensions]; or open cluster `opens`, if >= 0."""
    first, last, found = 0, action.shape[0], DONE
    if opens >= 0:
        first, last = opens, opens + 1
    else:
        found = _first_outside(action, joint.schedulers, joint.outcome.mask)
    if found != DONE:
        return found
    for e in range(first, last):
        if not _take_turn(kernels, joint, action, e, opens >= 0):
            found = FAILED
    return found


def compiled_turns(kernels: int, joint: Joint) -> Any:
    """`_step` for so many kernels and arrays like these."""
    return _compiled(kernels, typeof(joint))


@functools.cache
def _compiled(kernels: int, joint: types.Type) -> Any:
    return hot(_step, types.int64(types.UniTuple(KERNEL_TYPE, kernels), joint, types.int64[:, ::1], types.int64))
