"""One environment step of many rows as one compiled call: decide, run, record, skip, reward, observe."""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import prange, typeof, types
from numba.experimental import structref

from engine.compiled.jit import inner
from engine.compiled.kept import kept
from engine.compiled.records import record
from engine.device.latency import LATENCY_TYPE, Executor, Latency, iteration_seconds
from engine.server.core import begin, begin_decodes, empty, finish, idle, is_over, pause
from engine.server.policy import KERNEL_SIGNATURE
from engine.server.rows import new_rows, row_of
from engine.server.state import Memory, Server
from llmsched_env.asking import ASKED, DECODES, NOBODY, due, set_levels
from llmsched_env.observation import OBSERVATION_SIZE, encode, remember
from llmsched_env.reward import NUM_TERMS, add_totals, weighted

LIMITS = np.dtype(
    [
        ("max_steps", "f8"),  # decisions (0: none)
        ("horizon_s", "f8"),  # s (0: none)
        ("skips", "f8"),  # whether iterations without any prompt work pass by themselves
        ("hold", "f8"),  # iterations
        ("max_episode_steps", "f8"),  # decisions (0: none)
        ("learns", "f8"),  # whether the codec's kernel is to see those iterations, too
    ],
    align=True,
)
"""When an episode ends, and when the learner is asked."""
_limits = record(LIMITS)


class Memories(NamedTuple):
    """What the kernels of every row remember: number 0 is the action's codec and the observer, the others are arms."""

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
    limits: np.ndarray  # float64, a record of LIMITS
    sizes: np.ndarray  # int64[dimensions], choices in each dimension of an action
    decodes: np.ndarray  # int64[dimensions of the codec], its choice with which all decodes run and nothing else
    fallback: np.ndarray  # int64[dimensions of the codec], its choice where the learner's leads nowhere


class Rows(NamedTuple):
    """Everything that a step reads and writes; a choice is for row `e` of it."""

    servers: Any  # Server of arrays with a leading axis
    memories: Memories
    latency: Any  # Latency, or an executor
    rules: Rules
    outcome: Outcome


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
def _plan_by_codec(kernels: tuple[Any, ...], server: Server, memories: Memories, e: int, choice: np.ndarray) -> None:
    """Plan the batch that the codec makes of a choice of its own."""
    memory = _memory(memories, e, 0)
    set_levels(memory, choice)
    kernels[0](server.visible, memory, server.plan)


@inner
def _plan(kernels: tuple[Any, ...], server: Server, memories: Memories, e: int, choice: np.ndarray) -> None:
    """Plan the batch of a choice: that of an arm if there are any, else the codec's."""
    if len(kernels) > 1:
        k = 1 + choice[0]
        kernels[k](server.visible, _memory(memories, e, k), server.plan)
    else:
        _plan_by_codec(kernels, server, memories, e, choice)


def _by_profile(latency: Latency, server: Server) -> float:
    return iteration_seconds(latency, server.features)


def _by_executor(executor: Executor, server: Server) -> float:
    return executor.seconds(server)


_duration = inner(_by_profile, source=_by_executor)
"""Seconds of the planned batch: compiled, by the profile; from Python, by the executor that is in its place."""


@inner
def _run_batch(server: Server, latency: Latency) -> None:
    begin(server, False)
    if server.features[0].requests > 0:
        finish(server, _duration(latency, server))


@inner
def _run_choice(kernels: tuple[Any, ...], server: Server, rows: Rows, e: int, choice: np.ndarray) -> None:
    """Plan and run a choice. If nothing can be done: try again after evictions, wait, or else fall back."""
    _plan(kernels, server, rows.memories, e, choice)
    _run_batch(server, rows.latency)
    if server.features[0].requests == 0 and not pause(server):
        empty(server)
        _plan_by_codec(kernels, server, rows.memories, e, rows.rules.fallback)
        _run_batch(server, rows.latency)


@inner
def _run_decodes(kernels: tuple[Any, ...], server: Server, rows: Rows, e: int) -> None:
    """Run an iteration in which there is nothing to decide."""
    if _limits(rows.rules.limits).learns == 0.0 and begin_decodes(server):
        finish(server, _duration(rows.latency, server))
    else:
        _plan_by_codec(kernels, server, rows.memories, e, rows.rules.decodes)
        _run_batch(server, rows.latency)


@inner
def _to_next_decision(
    kernels: tuple[Any, ...], server: Server, rows: Rows, e: int, choice: np.ndarray, left: float
) -> None:
    """Let time pass until the learner is asked (or the episode ends); `choice` holds for `left` iterations more."""
    row, limits, observer = server.visible.row[0], _limits(rows.rules.limits), _memory(rows.memories, e, 0)
    remember(server.visible, observer)
    while not is_over(server) and (limits.horizon_s == 0.0 or row.now < limits.horizon_s):
        next_up = due(row, limits.skips > 0.0, left)
        if next_up == ASKED:
            break
        empty(server)
        if next_up == NOBODY:
            idle(server)
        elif next_up == DECODES:
            _run_decodes(kernels, server, rows, e)
        else:
            left -= 1.0
            _run_choice(kernels, server, rows, e, choice)
        remember(server.visible, observer)


@inner
def _score(server: Server, rules: Rules, outcome: Outcome, e: int, start: float) -> None:
    """Reward, duration and end of a step that began at `start`."""
    row, terms = server.visible.row[0], outcome.terms[e]
    add_totals(server.visible, server.hidden, rules.tier_weight, rules.weights, 1.0, terms)
    outcome.elapsed_s[e], outcome.reward[e] = row.now - start, weighted(rules.weights, terms)
    outcome.steps[e] += 1
    outcome.terminated[e] = is_over(server)
    limits = _limits(rules.limits)
    late = limits.horizon_s > 0.0 and row.now >= limits.horizon_s
    long = limits.max_steps > 0.0 and outcome.steps[e] >= limits.max_steps
    outcome.truncated[e] = (late or long) and not outcome.terminated[e]
    if limits.max_episode_steps > 0.0 and outcome.steps[e] >= limits.max_episode_steps:
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
def step_row(kernels: Any, action: Any, rows: Rows, e: int, opens: bool) -> None:
    """Step row `e` by the choice ``action[e]``; with `opens`, which reads no choice, to its first decision.

    Args:
        kernels: that of the action's codec, then those of its arms, if it has any.
        action: int64[rows, dimensions].
        rows: all rows.
        e: which of them.
        opens: whether the server was loaded just now.
    """
    server, start, left = row_of(rows.servers, e), 0.0, 0.0
    if opens:
        _open_episode(server, rows.outcome, e)
    else:
        start = _open_step(server, rows.rules, rows.outcome.terms[e])
        left += _limits(rows.rules.limits).hold - 1.0
        _run_choice(kernels, server, rows, e, action[e])
    _to_next_decision(kernels, server, rows, e, action[e], left)
    if not opens:
        _score(server, rows.rules, rows.outcome, e, start)
    encode(server.visible, _memory(rows.memories, e, 0), rows.outcome.observation[e])


@structref.register
class _FleetType(types.StructRef):
    """Numba's type of `FleetArrays`."""

    def __reduce__(self) -> tuple[Any, ...]:
        """The same in every process: numba finds `bundle_arrays` in its cache by this form."""
        return _fleet_type, (len(self.field_dict["kernels"]),)


class FleetArrays(structref.StructRefProxy):
    """All arrays of a fleet behind one reference: passing 40 arrays one by one costs more than a step of one row."""


structref.define_boxing(_FleetType, FleetArrays)

_FIELDS = {
    "servers": typeof(new_rows(1, 1, 1)),
    "memories": typeof(new_memories(1, 1, 1, 1, 1, 1)),
    "latency": LATENCY_TYPE,
    "rules": typeof(Rules(*[np.zeros(1)] * 3, *[np.zeros(1, np.int64)] * 3)),
    "outcome": typeof(new_outcome(1)),
}
_KERNEL = types.FunctionType(KERNEL_SIGNATURE)
PARTS = 64
"""Parts of the rows that threads share out among themselves."""
_ACTION = typeof(np.zeros((1, 1), np.int64))


@functools.cache
def _fleet_type(kernels: int) -> Any:
    """The type of a fleet with so many kernels."""
    return _FleetType([("kernels", types.UniTuple(_KERNEL, kernels)), *_FIELDS.items()])  # type: ignore[no-untyped-call]


@inner
def _first_outside(action: np.ndarray, sizes: np.ndarray, first: int, last: int) -> int:
    """The first row whose action is not in the space, -1 if there is none."""
    dimensions = sizes.shape[0]
    if action.shape[0] < last or action.shape[1] != dimensions:
        return first
    for e in range(first, last):
        for d in range(dimensions):
            if action[e, d] < 0 or action[e, d] >= sizes[d]:
                return e
    return -1


@functools.partial(kept, no_cpython_wrapper=True, no_cfunc_wrapper=True)
def _step_rows(action: Any, fleet: Any, first: int, last: int, opens: bool) -> None:
    kernels, rows = fleet.kernels, Rows(fleet.servers, fleet.memories, fleet.latency, fleet.rules, fleet.outcome)
    for e in range(first, last):
        step_row(kernels, action, rows, e, opens)


def _step(action: Any, fleet: Any, first: int, last: int, opens: bool) -> int:
    bad = -1 if opens else _first_outside(action, fleet.rules.sizes, first, last)
    if bad < 0:
        kernels, rows = fleet.kernels, Rows(fleet.servers, fleet.memories, fleet.latency, fleet.rules, fleet.outcome)
        for e in range(first, last):
            step_row(kernels, action, rows, e, opens)
    return bad


# Numba's parallel loops cannot take tuples of tuples from outside: each part of the rows unpacks the fleet itself.
def _step_in_parallel(action: Any, fleet: Any, first: int, last: int, opens: bool) -> int:
    bad, rows = -1 if opens else _first_outside(action, fleet.rules.sizes, first, last), last - first
    if bad < 0:
        for k in prange(PARTS):
            _step_rows(action, fleet, first + k * rows // PARTS, first + (k + 1) * rows // PARTS, opens)
    return bad


@functools.cache
def bundle_arrays(kernels: int) -> Any:
    """The compiled constructor: ``f(kernels, servers, memories, latency, rules, outcome) -> FleetArrays``, all shared.

    Kernels are bundled, too: to take one from Python costs more than a step of one row. The caller keeps them alive.

    Args:
        kernels: how many there are: the action's codec and its arms.
    """
    fleet_type = _fleet_type(kernels)

    def bundle(
        kernels: tuple[Any, ...], servers: Server, memories: Memories, latency: Latency, rules: Rules, outcome: Outcome
    ) -> Any:
        fleet: Any = structref.new(fleet_type)  # type: ignore[call-arg]
        fleet.kernels = kernels
        fleet.servers = servers
        fleet.memories = memories
        fleet.latency = latency
        fleet.rules = rules
        fleet.outcome = outcome
        return fleet

    return kept(bundle, fleet_type(fleet_type.field_dict["kernels"], *_FIELDS.values()))


@functools.cache
def compiled_step(kernels: int, parallel: bool) -> Any:
    """``f(action, fleet, first, last, opens)`` for rows `first` to `last` - 1, with action int64[rows, d].

    Returns the first row whose action is outside the space, having done nothing, or -1; `opens` is as for `step_row`.

    Args:
        kernels: how many the fleet has.
        parallel: spreads the rows over numba's threads, with the same results.
    """
    signature = types.int64(_ACTION, _fleet_type(kernels), types.int64, types.int64, types.boolean)
    return kept(_step_in_parallel, signature, parallel=True) if parallel else kept(_step, signature)
