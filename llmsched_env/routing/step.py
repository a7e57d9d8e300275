"""One decision of a router in each of many clusters as one compiled call: send, go on, reward, observe."""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import typeof, types

from engine.cluster.clusters import Cluster, cluster_of
from engine.cluster.features import REPLICA_NAMES, REQUEST_NAMES, encode
from engine.cluster.loop import ASKS, end_of_trace, look, reach_all, report_all, send, to_arrival
from engine.cluster.state import IDLE
from engine.compiled.jit import hot, inner
from engine.compiled.records import record
from engine.runs.steps import KERNEL_TYPE, OVER
from engine.server.rows import row_of
from llmsched_env.reward import NUM_TERMS, TERMS, add_totals, weighted

LIMITS = np.dtype([("max_steps", "f8"), ("horizon_s", "f8"), ("max_episode_steps", "f8")], align=True)
"""When an episode is cut off: decisions, s, decisions (0: never)."""
limits_of = record(LIMITS)
DONE, FAILED = -1, -2
"""What a step returns beside the first cluster whose action is outside the space: nothing is wrong; a cluster's
`Outcome.code` is not."""


class Rules(NamedTuple):
    """What does not change while clusters are stepped."""

    weights: np.ndarray  # float64, RewardWeights.vector()
    tier_weight: np.ndarray  # float64[tiers]
    drain_s: np.ndarray  # float64[replicas], s, from when on a replica gets nothing (inf: never)
    limits: np.ndarray  # float64, a record of LIMITS


class Outcome(NamedTuple):
    """What a step leaves behind for each cluster."""

    observation: np.ndarray  # float32[clusters, observation_size(replicas)]
    mask: np.ndarray  # int8[clusters, replicas], 1: the replica may get the request
    reward: np.ndarray  # float64[clusters]
    terms: np.ndarray  # float64[clusters, NUM_TERMS], unweighted
    totals: np.ndarray  # float64[clusters, NUM_TERMS], sums of the terms in the episode
    elapsed_s: np.ndarray  # float64[clusters]
    now: np.ndarray  # float64[clusters], s
    steps: np.ndarray  # int64[clusters], decisions so far in the episode
    code: np.ndarray  # int64[clusters], ASKS, OVER, or what a policy did that ended the episode
    terminated: np.ndarray  # bool[clusters]
    truncated: np.ndarray  # bool[clusters]


def observation_size(replicas: int) -> int:
    """Entries of an observation."""
    return replicas * len(REPLICA_NAMES) + len(REQUEST_NAMES)


def new_outcome(clusters: int, replicas: int) -> Outcome:
    """Zeroed outcome of a step."""
    return Outcome(
        np.zeros((clusters, observation_size(replicas)), np.float32),
        np.zeros((clusters, replicas), np.int8),
        np.zeros(clusters),
        np.zeros((clusters, NUM_TERMS)),
        np.zeros((clusters, NUM_TERMS)),
        np.zeros(clusters),
        np.zeros(clusters),
        np.zeros(clusters, np.int64),
        np.zeros(clusters, np.int64),
        np.zeros(clusters, np.bool_),
        np.zeros(clusters, np.bool_),
    )


@inner
def _add_waits(cluster: Cluster, time: float, terms: np.ndarray) -> None:
    """Take off what requests wait between the clock of their replica (of one that runs a batch: its begin) and now."""
    servers, t = cluster.fleet.servers, terms.view(TERMS)[0]
    for j in range(cluster.fleet.clock.shape[0]):
        row, request = servers.visible.row[j, 0], servers.visible.request[j]
        span, on_their_way = time - row.now, 0.0
        for i in range(row.next_arrival, cluster.fleet.load[j].sent):
            on_their_way += time - request[i].arrival
        t.ttft -= span * row.no_first_token + on_their_way
        t.e2e -= span * (row.num_waiting + row.num_running) + on_their_way


@inner
def _sum_up(cluster: Cluster, rules: Rules, time: float, totals: np.ndarray) -> None:
    """Write the sums of the terms from the start of the episode until now."""
    totals[:] = 0.0
    for j in range(cluster.fleet.clock.shape[0]):
        server = row_of(cluster.fleet.servers, j)
        add_totals(server.visible, server.hidden, rules.tier_weight, rules.weights, 1.0, totals)
    _add_waits(cluster, time, totals)


@inner
def is_all_idle(cluster: Cluster) -> bool:
    """Whether every replica has served all that it got."""
    for j in range(cluster.fleet.clock.shape[0]):
        if cluster.fleet.clock[j].doing != IDLE:
            return False
    return True


@inner
def latest(cluster: Cluster) -> float:
    """When the last replica became idle."""
    time = 0.0
    for j in range(cluster.fleet.clock.shape[0]):
        time = max(time, cluster.fleet.servers.visible.row[j, 0].now)
    return time


@inner
def _to_horizon(kernels: tuple[Any, ...], cluster: Cluster, horizon: float) -> int:
    """Go on until the episode is cut off, no request arriving before."""
    if cluster.fleet.course[0].next == cluster.trace.request.shape[0]:
        end_of_trace(cluster.fleet)
    return reach_all(kernels, cluster.fleet, horizon)


@inner
def _go_on(kernels: tuple[Any, ...], cluster: Cluster, horizon: float) -> tuple[int, float]:
    """Go on until the next request arrives or the episode ends; the code of the loop and the time."""
    i, request = cluster.fleet.course[0].next, cluster.trace.request
    if horizon > 0.0 and (i == request.shape[0] or request[i].arrival >= horizon):
        code = _to_horizon(kernels, cluster, horizon)
        time = latest(cluster) if i == request.shape[0] and is_all_idle(cluster) else horizon
    else:
        code = to_arrival(kernels, cluster.fleet, cluster.trace, cluster.seen)
        time = cluster.seen.row[0].now if code == ASKS else latest(cluster)
    return code, time


@inner
def show_router(cluster: Cluster, rules: Rules, outcome: Outcome, e: int) -> None:
    """Write the observation and the mask of a router's decision."""
    replicas, out = rules.drain_s.shape[0], outcome.observation[e]
    size = out.shape[0] - len(REQUEST_NAMES)
    encode(cluster.seen, out[:size].reshape((replicas, len(REPLICA_NAMES))), out[size:])
    for j in range(replicas):
        outcome.mask[e, j] = outcome.now[e] < rules.drain_s[j]


@inner
def _score(cluster: Cluster, rules: Rules, outcome: Outcome, e: int, code: int) -> None:
    """Reward and end of a step that ended with this code."""
    terms, totals, limits = outcome.terms[e], outcome.totals[e], limits_of(rules.limits)
    for t in range(NUM_TERMS):
        terms[t] = totals[t]
    _sum_up(cluster, rules, outcome.now[e], totals)
    for t in range(NUM_TERMS):
        terms[t] = totals[t] - terms[t]
    outcome.reward[e] = weighted(rules.weights, terms)
    outcome.steps[e] += 1
    is_last = cluster.fleet.course[0].next == cluster.trace.request.shape[0]
    outcome.terminated[e] = code == OVER and is_last and is_all_idle(cluster)
    long = limits.max_steps > 0.0 and outcome.steps[e] >= limits.max_steps
    outcome.truncated[e] = (code == OVER or long) and not outcome.terminated[e]
    if limits.max_episode_steps > 0.0 and outcome.steps[e] >= limits.max_episode_steps:
        outcome.truncated[e] = True  # also at the step that terminates, as gymnasium.wrappers.TimeLimit does


@inner
def end_step(cluster: Cluster, rules: Rules, outcome: Outcome, e: int, code: int, time: float, opens: bool) -> None:
    """Note time, reward and end of a step.

    Args:
        cluster: number `e`.
        rules: of all.
        outcome: of all.
        e: which.
        code: OVER if the episode has ended.
        time: s, at which the step ends.
        opens: whether it only led to the first decision.
    """
    if code == OVER:
        report_all(cluster.fleet, cluster.seen, time)
        look(cluster.fleet, cluster.seen, time)
    outcome.elapsed_s[e], outcome.now[e] = time - outcome.now[e], time
    if opens:
        outcome.steps[e], outcome.totals[e] = 0, 0.0
    else:
        _score(cluster, rules, outcome, e, code)


@inner
def step_cluster(
    kernels: tuple[Any, ...], clusters: Cluster, rules: Rules, outcome: Outcome, choice: int, e: int
) -> bool:
    """Step cluster `e`; whether all went well.

    Args:
        kernels: of the policies.
        clusters: all of them.
        rules: of all.
        outcome: of all.
        choice: replica that gets the request; -1: the episode begins.
        e: which cluster.
    """
    cluster = cluster_of(clusters, e)
    if choice >= 0:
        send(cluster.fleet, cluster.trace, choice)
    code, time = _go_on(kernels, cluster, limits_of(rules.limits).horizon_s)
    outcome.code[e] = code
    if code != ASKS and code != OVER:
        return False
    end_step(cluster, rules, outcome, e, code, time, choice < 0)
    show_router(cluster, rules, outcome, e)
    return True


@inner
def is_closed(mask: np.ndarray, j: int) -> bool:
    """Whether `j` is no replica that may get the request."""
    return not 0 <= j < mask.shape[0] or mask[j] == 0


@inner
def _first_outside(action: np.ndarray, mask: np.ndarray) -> int:
    """The first cluster whose action is no replica that may get the request, DONE if there is none."""
    for e in range(mask.shape[0]):
        if is_closed(mask[e], action[e]):
            return e
    return DONE


def _step(
    kernels: tuple[Any, ...], clusters: Cluster, rules: Rules, outcome: Outcome, action: np.ndarray, opens: int
) -> int:
    """Step every cluster by its action, int64[clusters]; or move cluster `opens`, if >= 0, to its first decision."""
    first, last, found = 0, action.shape[0], DONE
    if opens >= 0:
        first, last = opens, opens + 1
    else:
        found = _first_outside(action, outcome.mask)
    if found != DONE:
        return found
    for e in range(first, last):
        if not step_cluster(kernels, clusters, rules, outcome, -1 if opens >= 0 else action[e], e):
            found = FAILED
    return found


def compiled_step(kernels: int, clusters: Cluster, rules: Rules, outcome: Outcome) -> Any:
    """`_step` for so many kernels and arrays like these."""
    return _compiled(kernels, typeof(clusters), typeof(rules), typeof(outcome))


@functools.cache
def _compiled(kernels: int, *arrays: types.Type) -> Any:
    return hot(_step, types.int64(types.UniTuple(KERNEL_TYPE, kernels), *arrays, types.int64[::1], types.int64))
