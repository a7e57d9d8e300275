"""One environment step of many rows as one compiled call: decide, run, record, skip, reward, observe."""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import prange, typeof, types
from numba.experimental import structref

from engine.compiled.jit import inner
from engine.compiled.kept import kept
from engine.device.latency import LATENCY_TYPE, Executor, Latency, iteration_seconds
from engine.server.core import begin, begin_decodes, empty, finish, idle, is_over, pause
from engine.server.policy import KERNEL_SIGNATURE
from engine.server.rows import new_rows, row_of
from engine.server.state import Memory, Server
from llmsched_env.action import BUDGET, ORDER, RULE, TOKEN_LEVELS, allocate_batch
from llmsched_env.observation import OBSERVATION_SIZE, encode, remember
from llmsched_env.reward import NUM_TERMS, add_totals, weighted

SARATHI_LEVEL = TOKEN_LEVELS.index(512)


class Memories(NamedTuple):
    """What the kernels of every row remember: number 0 is the allocation codec and observer, the others are arms."""

    params: np.ndarray  # float64[kernels, p]
    request: np.ndarray  # float64[rows, kernels, requests, k]
    row: np.ndarray  # float64[rows, kernels, m]


class Outcome(NamedTuple):
    """What a step leaves behind for each row."""

    observation: np.ndarray  # float32[rows, OBSERVATION_SIZE]
    reward: np.ndarray  # float64[rows]
    terms: np.ndarray  # float64[rows, NUM_TERMS], unweighted
    elapsed_s: np.ndarray  # float64[rows]
    steps: np.ndarray  # int64[rows], decisions so far in the episode
    terminated: np.ndarray  # bool[rows]
    truncated: np.ndarray  # bool[rows]


class Rules(NamedTuple):
    """What is the same for every row."""

    weights: np.ndarray  # float64, RewardWeights.vector()
    tier_weight: np.ndarray  # float64[tiers]
    limits: (
        np.ndarray
    )  # float64[5]: max_steps, horizon_s (0: none), skip_decode_only, hold, max_episode_steps (0: none)
    choices: np.ndarray  # int64[dimensions], choices in each dimension of an action


def new_memories(kernels: int, params: int, rows: int, requests: int, request_cells: int, row_cells: int) -> Memories:
    """Zeroed memory for all kernels of all rows."""
    return Memories(
        np.zeros((kernels, params)),
        np.zeros((rows, kernels, requests, request_cells)),
        np.zeros((rows, kernels, row_cells)),
    )


def new_outcome(rows: int) -> Outcome:
    """Zeroed outcome of a step."""
    return Outcome(
        np.zeros((rows, OBSERVATION_SIZE), np.float32),
        np.zeros(rows),
        np.zeros((rows, NUM_TERMS)),
        np.zeros(rows),
        np.zeros(rows, np.int64),
        np.zeros(rows, np.bool_),
        np.zeros(rows, np.bool_),
    )


@inner
def _memory(memories: Memories, e: int, k: int) -> Memory:
    return Memory(memories.params[k], memories.request[e, k], memories.row[e, k])


@inner
def _choose(memory: Memory, budget: int, rule: int, order: int) -> None:
    memory.row[BUDGET] = budget
    memory.row[RULE] = rule
    memory.row[ORDER] = order


def _by_profile(latency: Any, server: Server) -> float:
    return iteration_seconds(latency, server.features)


def _by_executor(executor: Executor, server: Server) -> float:
    return executor.seconds(server)


_duration = inner(_by_profile, source=_by_executor)
"""Seconds of the planned batch: compiled, by the profile; from Python, by the executor that is in its place."""


@inner
def _run_batch(server: Server, latency: Latency) -> None:
    begin(server, False)
    if server.features.requests[0] > 0:
        finish(server, _duration(latency, server))


@inner
def _run_plan(server: Server, observer: Memory, latency: Latency) -> None:
    """Run the planned batch. Without one: try again after evictions, wait, or (nothing to wait for) do as Sarathi."""
    _run_batch(server, latency)
    if server.features.requests[0] == 0 and not pause(server):
        empty(server)
        _choose(observer, SARATHI_LEVEL, 0, 0)
        allocate_batch(server.visible, observer, server.plan)
        _run_batch(server, latency)


@inner
def _to_next_decision(server: Server, observer: Memory, latency: Latency, limits: np.ndarray, held: float) -> None:
    """Let time pass until there is something to decide (or the episode ends); the last choice holds until `held`."""
    row, m = server.visible.row[0], observer.row
    budget, rule, order = m[BUDGET], m[RULE], m[ORDER]
    remember(server.visible, observer)
    while not is_over(server) and (limits[1] == 0.0 or row.now < limits[1]):
        if row.num_waiting + row.num_running == 0:
            empty(server)
            idle(server)
        elif limits[2] > 0.0 and row.num_waiting + row.num_prefilling == 0:
            empty(server)
            if begin_decodes(server):
                finish(server, _duration(latency, server))
            else:
                _choose(observer, 0, 0, 0)
                allocate_batch(server.visible, observer, server.plan)
                _run_batch(server, latency)
        elif held < limits[3]:
            held += 1.0
            empty(server)
            _choose(observer, budget, rule, order)
            allocate_batch(server.visible, observer, server.plan)
            _run_plan(server, observer, latency)
        else:
            break
        remember(server.visible, observer)


@inner
def _score(server: Server, rules: Rules, outcome: Outcome, e: int, start: float) -> None:
    """Reward, duration and end of a step that began at `start`."""
    row, terms = server.visible.row[0], outcome.terms[e]
    add_totals(server.visible, server.hidden, rules.tier_weight, rules.weights, 1.0, terms)
    outcome.elapsed_s[e] = row.now - start
    outcome.reward[e] = weighted(rules.weights, terms)
    outcome.steps[e] += 1
    outcome.terminated[e] = is_over(server)
    late = rules.limits[1] > 0.0 and row.now >= rules.limits[1]
    long = rules.limits[0] > 0.0 and outcome.steps[e] >= rules.limits[0]
    outcome.truncated[e] = (late or long) and not outcome.terminated[e]
    if rules.limits[4] > 0.0 and outcome.steps[e] >= rules.limits[4]:
        outcome.truncated[e] = True  # also at the step that terminates, as gymnasium.wrappers.TimeLimit does


@inner
def _open_step(server: Server, rules: Rules, terms: np.ndarray) -> float:
    """Note the totals before a step and empty the plan; returns the time."""
    terms[:] = 0.0
    add_totals(server.visible, server.hidden, rules.tier_weight, rules.weights, -1.0, terms)
    empty(server)
    return float(server.visible.row[0].now)


@inner
def _open_episode(server: Server, outcome: Outcome, e: int) -> None:
    outcome.steps[e] = 0
    empty(server)
    idle(server)


@inner
def allocation_row(
    action: Any, servers: Any, memories: Any, latency: Any, rules: Any, outcome: Any, e: int, opens: bool
) -> None:
    """Step row `e` by ``action[e]`` = (budget, decode rule, order); with `opens`, to its first decision."""
    server, observer, start = row_of(servers, e), _memory(memories, e, 0), 0.0
    if opens:
        _open_episode(server, outcome, e)
    else:
        start = _open_step(server, rules, outcome.terms[e])
        _choose(observer, action[e, 0], action[e, 1], action[e, 2])
        allocate_batch(server.visible, observer, server.plan)
        _run_plan(server, observer, latency)
    _to_next_decision(server, observer, latency, rules.limits, rules.limits[3] if opens else 1.0)
    if not opens:
        _score(server, rules, outcome, e, start)
    encode(server.visible, observer, outcome.observation[e])


@inner
def mixture_row(
    kernels: Any, action: Any, servers: Any, memories: Any, latency: Any, rules: Any, outcome: Any, e: int, opens: bool
) -> None:
    """Step row `e` by ``action[e]`` = (arm,); with `opens`, to its first decision."""
    server, observer, start = row_of(servers, e), _memory(memories, e, 0), 0.0
    if opens:
        _open_episode(server, outcome, e)
    else:
        start = _open_step(server, rules, outcome.terms[e])
        kernels[action[e, 0]](server.visible, _memory(memories, e, 1 + action[e, 0]), server.plan)
        _run_plan(server, observer, latency)
    _to_next_decision(server, observer, latency, rules.limits, rules.limits[3])
    if not opens:
        _score(server, rules, outcome, e, start)
    encode(server.visible, observer, outcome.observation[e])


@structref.register
class _FleetType(types.StructRef):
    """Numba's type of `FleetArrays`."""


class FleetArrays(structref.StructRefProxy):
    """All arrays of a fleet behind one reference: passing 40 arrays one by one costs more than a step of one row."""


structref.define_boxing(_FleetType, FleetArrays)

_FIELDS = {
    "servers": typeof(new_rows(1, 1, 1)),
    "memories": typeof(new_memories(1, 1, 1, 1, 1, 1)),
    "latency": LATENCY_TYPE,
    "rules": typeof(Rules(np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1, np.int64))),
    "outcome": typeof(new_outcome(1)),
}
_FLEET: Any = _FleetType([*_FIELDS.items()])  # type: ignore[no-untyped-call]
_KERNEL = types.FunctionType(KERNEL_SIGNATURE)
PARTS = 64
"""Parts of the rows that threads share out among themselves."""
_ACTION = typeof(np.zeros((1, 1), np.int64))


def _bundle(servers: Any, memories: Any, latency: Any, rules: Any, outcome: Any) -> Any:
    fleet: Any = structref.new(_FLEET)  # type: ignore[call-arg]
    fleet.servers = servers
    fleet.memories = memories
    fleet.latency = latency
    fleet.rules = rules
    fleet.outcome = outcome
    return fleet


@inner
def _first_outside(action: np.ndarray, choices: np.ndarray, first: int, last: int) -> int:
    """The first row whose action is not in the space, -1 if there is none."""
    dimensions = choices.shape[0]
    if action.shape[0] < last or action.shape[1] != dimensions:
        return first
    for e in range(first, last):
        for d in range(dimensions):
            if action[e, d] < 0 or action[e, d] >= choices[d]:
                return e
    return -1


@kept
def _allocation_rows(action: Any, fleet: Any, first: int, last: int, opens: bool) -> None:
    servers, memories, outcome = fleet.servers, fleet.memories, fleet.outcome
    latency, rules = fleet.latency, fleet.rules
    for e in range(first, last):
        allocation_row(action, servers, memories, latency, rules, outcome, e, opens)


@kept
def _mixture_rows(kernels: Any, action: Any, fleet: Any, first: int, last: int, opens: bool) -> None:
    servers, memories, outcome = fleet.servers, fleet.memories, fleet.outcome
    latency, rules = fleet.latency, fleet.rules
    for e in range(first, last):
        mixture_row(kernels, action, servers, memories, latency, rules, outcome, e, opens)


def _allocate(action: Any, fleet: Any, first: int, last: int, opens: bool) -> int:
    bad = -1 if opens else _first_outside(action, fleet.rules.choices, first, last)
    if bad < 0:
        _allocation_rows(action, fleet, first, last, opens)
    return bad


def _mix(kernels: Any, action: Any, fleet: Any, first: int, last: int, opens: bool) -> int:
    bad = -1 if opens else _first_outside(action, fleet.rules.choices, first, last)
    if bad < 0:
        _mixture_rows(kernels, action, fleet, first, last, opens)
    return bad


# Numba's parallel loops cannot take tuples of tuples from outside: each part of the rows unpacks the fleet itself.
def _allocate_in_parallel(action: Any, fleet: Any, first: int, last: int, opens: bool) -> int:
    bad, rows = -1 if opens else _first_outside(action, fleet.rules.choices, first, last), last - first
    if bad < 0:
        for k in prange(PARTS):
            _allocation_rows(action, fleet, first + k * rows // PARTS, first + (k + 1) * rows // PARTS, opens)
    return bad


def _mix_in_parallel(kernels: Any, action: Any, fleet: Any, first: int, last: int, opens: bool) -> int:
    bad, rows = -1 if opens else _first_outside(action, fleet.rules.choices, first, last), last - first
    if bad < 0:
        for k in prange(PARTS):
            _mixture_rows(kernels, action, fleet, first + k * rows // PARTS, first + (k + 1) * rows // PARTS, opens)
    return bad


@functools.cache
def bundle_arrays() -> Any:
    """The compiled constructor: ``f(servers, memories, latency, rules, outcome) -> FleetArrays``, all shared."""
    return kept(_bundle, _FLEET(*_FIELDS.values()))


@functools.cache
def step_allocation(parallel: bool) -> Any:
    """``f(action, fleet, first, last, opens)`` for rows `first` to `last` - 1, with action int64[rows, 3].

    Returns the first row whose action is outside the space, having done nothing, or -1. With `opens` the action is not
    read: the freshly loaded rows go to their first decision. `parallel` spreads the rows over numba's threads, with the
    same results.
    """
    signature = types.int64(_ACTION, _FLEET, types.int64, types.int64, types.boolean)
    return kept(_allocate_in_parallel, signature, parallel=True) if parallel else kept(_allocate, signature)


@functools.cache
def step_mixture(arms: int, parallel: bool) -> Any:
    """``f(kernels, action, fleet, first, last, opens)`` with the kernels of all arms and action int64[rows, 1]."""
    signature = types.int64(types.UniTuple(_KERNEL, arms), _ACTION, _FLEET, types.int64, types.int64, types.boolean)
    return kept(_mix_in_parallel, signature, parallel=True) if parallel else kept(_mix, signature)
