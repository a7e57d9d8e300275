"""One environment step of many rows as one compiled call: decide, run, record, skip, reward, observe."""

import functools
from typing import Any

import numpy as np
from numba import typeof, types
from numba.experimental import structref

from engine.compiled.jit import inner
from engine.compiled.kept import kept
from engine.compiled.records import record
from engine.device.latency import COEFFICIENTS, Executor, Latency, iteration_seconds
from engine.server.core import begin, begin_decodes, empty, finish, idle, is_over, pause
from engine.server.policy import KERNEL_SIGNATURE
from engine.server.rows import new_rows, row_of
from engine.server.state import Memory, Server
from llmsched_env.asking import ASKED, DECODES, NOBODY, due
from llmsched_env.observation import encode, remember
from llmsched_env.planning import memory_of, plan_by_codec, plan_choice
from llmsched_env.reward import add_totals, weighted
from llmsched_env.rows import LIMITS, Latencies, Outcome, Rows, Rules, new_memories, new_outcome

_limits = record(LIMITS)


@inner
def _observer(rows: Rows, e: int) -> Memory:
    return memory_of(rows.memories, rows.world[e], e, 0)


def _by_profile(latency: Latencies, world: int, server: Server) -> float:
    table = latency.table[world, : latency.knots[world]]
    return iteration_seconds(Latency(latency.coefficient[world : world + 1], table), server.features)


def _by_executor(executor: Executor, world: int, server: Server) -> float:
    return executor.seconds(server)


_duration = inner(_by_profile, source=_by_executor)
"""Seconds of the planned batch: compiled, by the profile; from Python, by the executor that is in its place."""


@inner
def _run_batch(server: Server, rows: Rows, e: int) -> None:
    begin(server, False)
    if server.features[0].requests > 0:
        finish(server, _duration(rows.latency, rows.world[e], server))


@inner
def _run_choice(kernels: tuple[Any, ...], server: Server, rows: Rows, e: int, choice: np.ndarray) -> None:
    """Plan and run a choice. If nothing can be done: try again after evictions, wait, or else fall back."""
    plan_choice(kernels, server, rows.memories, rows.world[e], e, choice)
    _run_batch(server, rows, e)
    if server.features[0].requests == 0 and not pause(server):
        empty(server)
        plan_by_codec(kernels, server, rows.memories, rows.world[e], e, rows.rules.fallback)
        _run_batch(server, rows, e)


@inner
def _run_decodes(kernels: tuple[Any, ...], server: Server, rows: Rows, e: int) -> None:
    """Run an iteration in which there is nothing to decide."""
    if _limits(rows.rules.limits).learns == 0.0 and begin_decodes(server):
        finish(server, _duration(rows.latency, rows.world[e], server))
    else:
        plan_by_codec(kernels, server, rows.memories, rows.world[e], e, rows.rules.decodes)
        _run_batch(server, rows, e)


@inner
def _to_next_decision(
    kernels: tuple[Any, ...], server: Server, rows: Rows, e: int, choice: np.ndarray, left: float
) -> None:
    """Let time pass until the learner is asked (or the episode ends); `choice` holds for `left` iterations more."""
    row, limits, observer = server.visible.row[0], _limits(rows.rules.limits), _observer(rows, e)
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
def _score(server: Server, rows: Rows, e: int, start: float) -> None:
    """Reward, duration and end of a step that began at `start`."""
    rules, outcome = rows.rules, rows.outcome
    row, terms = server.visible.row[0], outcome.terms[e]
    add_totals(server.visible, server.hidden, rules.tier_weight[rows.world[e]], rules.weights, 1.0, terms)
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
def _open_step(server: Server, rows: Rows, e: int) -> float:
    """Note the totals before a step and empty the plan; returns the time."""
    rules, terms = rows.rules, rows.outcome.terms[e]
    terms[:] = 0.0
    add_totals(server.visible, server.hidden, rules.tier_weight[rows.world[e]], rules.weights, -1.0, terms)
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
        start = _open_step(server, rows, e)
        left += _limits(rows.rules.limits).hold - 1.0
        _run_choice(kernels, server, rows, e, action[e])
    _to_next_decision(kernels, server, rows, e, action[e], left)
    if not opens:
        _score(server, rows, e, start)
    encode(server.visible, _observer(rows, e), rows.outcome.observation[e])


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
    "memories": typeof(new_memories(np.zeros((1, 1, 1)), 1, 1, 1, 1)),
    "latency": typeof(
        Latencies(np.zeros(1, COEFFICIENTS).view(np.recarray), np.zeros((1, 1, 2)), np.zeros(1, np.int64))
    ),
    "rules": typeof(Rules(np.zeros(1), np.zeros((1, 1)), np.zeros(1), *[np.zeros(1, np.int64)] * 3)),
    "outcome": typeof(new_outcome(1)),
    "world": typeof(np.zeros(1, np.int64)),
}
_KERNEL = types.FunctionType(KERNEL_SIGNATURE)
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


def _step(action: Any, fleet: Any, first: int, last: int, opens: bool) -> int:
    bad = -1 if opens else _first_outside(action, fleet.rules.sizes, first, last)
    if bad < 0:
        kernels, latency, world = fleet.kernels, fleet.latency, fleet.world
        rows = Rows(fleet.servers, fleet.memories, latency, fleet.rules, fleet.outcome, world)
        for e in range(first, last):
            step_row(kernels, action, rows, e, opens)
    return bad


@functools.cache
def bundle_arrays(kernels: int) -> Any:
    """The compiled constructor: ``f(kernels, rows) -> FleetArrays``, all shared.

    Kernels are bundled, too: to take one from Python costs more than a step of one row. The caller keeps them alive.

    Args:
        kernels: how many there are: the action's codec and its arms.
    """
    fleet_type = _fleet_type(kernels)

    def bundle(kernels: tuple[Any, ...], rows: Rows) -> Any:
        fleet: Any = structref.new(fleet_type)  # type: ignore[call-arg]
        fleet.kernels = kernels
        fleet.servers = rows.servers
        fleet.memories = rows.memories
        fleet.latency = rows.latency
        fleet.rules = rows.rules
        fleet.outcome = rows.outcome
        fleet.world = rows.world
        return fleet

    rows = types.NamedTuple(list(_FIELDS.values()), Rows)
    return kept(bundle, fleet_type(fleet_type.field_dict["kernels"], rows))


@functools.cache
def compiled_step(kernels: int) -> Any:
    """``f(action, fleet, first, last, opens)`` for rows `first` to `last` - 1, with action int64[rows, d].

    Returns the first row whose action is outside the space, having done nothing, or -1; `opens` is as for `step_row`.
    Threads may call it at the same time for different rows.

    Args:
        kernels: how many the fleet has.
    """
    signature = types.int64(_ACTION, _fleet_type(kernels), types.int64, types.int64, types.boolean)
    return kept(_step, signature, nogil=True)
