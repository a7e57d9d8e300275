"""One environment step of many rows as one compiled call: decide, run, record, skip, reward, observe."""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange, typeof, types

from engine._jit import hot
from engine.core import begin, empty, finish, idle, is_over, pause
from engine.latency import LATENCY_TYPE, Latency, iteration_seconds
from engine.policy import KERNEL_SIGNATURE, HotKernel
from engine.rows import new_rows, row_of
from engine.state import Memory, Server
from llmsched_env.action import BUDGET, ORDER, RULE, TOKEN_LEVELS, allocate_batch
from llmsched_env.observation import OBSERVATION_SIZE, encode, remember
from llmsched_env.reward import NUM_TERMS, add_totals, starving

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

    weights: np.ndarray  # float64[NUM_TERMS + 1], RewardWeights.vector()
    tier_weight: np.ndarray  # float64[tiers]
    limits: np.ndarray  # float64[3]: max_steps, horizon_s (0: none), skip_decode_only


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


@hot
def _memory(memories: Memories, e: int, k: int) -> Memory:
    return Memory(memories.params[k], memories.request[e, k], memories.row[e, k])


@hot
def _choose(memory: Memory, budget: int, rule: int, order: int) -> None:
    memory.row[BUDGET] = budget
    memory.row[RULE] = rule
    memory.row[ORDER] = order


@hot
def _run_batch(server: Server, latency: Latency) -> None:
    begin(server, False)
    if server.features.requests[0] > 0:
        finish(server, iteration_seconds(latency, server.features))


@hot
def _fall_back(server: Server, observer: Memory, latency: Latency) -> None:
    """Go on after a plan without a batch: try again after evictions, wait, or (nothing to wait for) do as Sarathi."""
    if not pause(server):
        _choose(observer, SARATHI_LEVEL, 0, 0)
        allocate_batch(server.visible, observer, server.plan)
        _run_batch(server, latency)


@hot
def _to_next_decision(server: Server, observer: Memory, latency: Latency, limits: np.ndarray) -> None:
    """Let time pass until there is something to decide (or the episode ends)."""
    row = server.visible.row[0]
    remember(server.visible, observer)
    while not is_over(server) and (limits[1] == 0.0 or row.now < limits[1]):
        if row.num_waiting + row.num_running == 0:
            empty(server)
            idle(server)
        elif limits[2] > 0.0 and row.num_waiting + row.num_prefilling == 0:
            empty(server)
            _choose(observer, 0, 0, 0)
            allocate_batch(server.visible, observer, server.plan)
            _run_batch(server, latency)
        else:
            break
        remember(server.visible, observer)


@hot
def _book_step(server: Server, observer: Memory, rules: Rules, outcome: Outcome, e: int, start: float) -> None:
    """Reward, end of the episode and observation after a step that began at `start`."""
    row, terms = server.visible.row[0], outcome.terms[e]
    add_totals(server, rules.tier_weight, 1.0, terms)
    outcome.elapsed_s[e] = row.now - start
    if rules.weights[NUM_TERMS - 1] > 0.0:
        terms[NUM_TERMS - 1] -= starving(server, rules.weights[NUM_TERMS]) * outcome.elapsed_s[e]
    reward = 0.0
    for t in range(NUM_TERMS):
        reward += rules.weights[t] * terms[t]
    outcome.reward[e] = reward
    outcome.terminated[e] = is_over(server)
    late = rules.limits[1] > 0.0 and row.now >= rules.limits[1]
    long = rules.limits[0] > 0.0 and outcome.steps[e] >= rules.limits[0]
    outcome.truncated[e] = (late or long) and not outcome.terminated[e]
    encode(server.visible, observer, outcome.observation[e])


def _step_rows(
    kernels: Any, action: Any, servers: Any, memories: Any, latency: Any, rules: Any, outcome: Any, fresh: int
) -> None:
    first, last = (fresh, fresh + 1) if fresh >= 0 else (0, outcome.reward.shape[0])
    for e in prange(first, last):
        server = row_of(servers, e)
        observer = _memory(memories, e, 0)
        if fresh >= 0:
            outcome.steps[e] = 0
            empty(server)
            idle(server)
            _to_next_decision(server, observer, latency, rules.limits)
            encode(server.visible, observer, outcome.observation[e])
            continue
        outcome.terms[e, :] = 0.0
        add_totals(server, rules.tier_weight, -1.0, outcome.terms[e])
        start = server.visible.row[0].now
        outcome.steps[e] += 1
        empty(server)
        if action.shape[1] > 1:
            _choose(observer, action[e, 0], action[e, 1], action[e, 2])
            allocate_batch(server.visible, observer, server.plan)
        else:
            k = action[e, 0]
            kernels[k](server.visible, _memory(memories, e, 1 + k), server.plan)
        _run_batch(server, latency)
        if server.features.requests[0] == 0:
            _fall_back(server, observer, latency)
        _to_next_decision(server, observer, latency, rules.limits)
        _book_step(server, observer, rules, outcome, e, start)


@HotKernel
def no_arm(view: Any, memory: Any, plan: Any) -> None:
    """Plan nothing: stands in where there are no arms, so that the step has one type."""


_ROWS = (
    typeof(new_rows(1, 1, 1)),
    typeof(new_memories(1, 1, 1, 1, 1, 1)),
    LATENCY_TYPE,
    typeof(Rules(np.zeros(1), np.zeros(1), np.zeros(1))),
    typeof(new_outcome(1)),
)
_KERNEL = types.FunctionType(KERNEL_SIGNATURE)


@functools.cache
def step_rows(num_kernels: int, parallel: bool) -> Any:
    """The compiled step: ``f(kernels, action, servers, memories, latency, rules, outcome, fresh)``.

    `action` is int64[rows, dimensions]. With ``fresh >= 0`` only that row is touched: it has just been loaded and goes
    to its first decision. With `parallel` the rows are spread over numba's threads; results do not depend on it.
    `num_kernels` is the number of arms of `mixture`; `allocation`, which needs none, passes `no_arm`.
    """
    actions = typeof(np.zeros((1, 1), np.int64))
    signature = types.void(types.UniTuple(_KERNEL, num_kernels), actions, *_ROWS, types.int64)
    return njit(signature, cache=True, parallel=parallel, _nrt=parallel)(_step_rows)
