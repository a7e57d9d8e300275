"""One environment step of many rows as one compiled call: decide, run, record, skip, reward, observe."""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange, types, typeof

from engine.core import begin, finish, idle, is_over
from engine.latency import LATENCY_TYPE, Latency, iteration_seconds
from engine.policy import KERNEL_SIGNATURE
from engine.rows import new_rows, row_of
from engine.simulate import empty
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


@njit(cache=True)
def _memory(memories: Memories, e: int, k: int) -> Memory:
    return Memory(memories.params[k], memories.request[e, k], memories.row[e, k])


@njit(cache=True)
def _choose(memory: Memory, budget: int, rule: int, order: int) -> None:
    memory.row[BUDGET] = budget
    memory.row[RULE] = rule
    memory.row[ORDER] = order


@njit(cache=True)
def _run_batch(server: Server, latency: Latency) -> None:
    begin(server, False)
    if server.features.requests[0] > 0:
        finish(server, iteration_seconds(latency, server.features))


@njit(cache=True)
def _fall_back(server: Server, observer: Memory, latency: Latency) -> None:
    """Go on after a plan without a batch: try again after evictions, wait, or (nothing to wait for) do as Sarathi."""
    if server.plan.size[0] == 0 and not idle(server):
        _choose(observer, SARATHI_LEVEL, 0, 0)
        allocate_batch(server.visible, observer, server.plan)
        _run_batch(server, latency)


@njit(cache=True)
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


def _step_rows(
    kernels: Any, action: Any, servers: Any, memories: Any, latency: Any, rules: Any, outcome: Any
) -> None:
    for e in prange(outcome.reward.shape[0]):
        server = row_of(servers, e)
        row = server.visible.row[0]
        observer = _memory(memories, e, 0)
        terms = outcome.terms[e]
        terms[:] = 0.0
        add_totals(server, rules.tier_weight, -1.0, terms)
        start = row.now
        empty(server)
        if len(kernels) == 1:
            _choose(observer, action[e, 0], action[e, 1], action[e, 2])
            allocate_batch(server.visible, observer, server.plan)
        else:
            k = 1 + action[e, 0]
            kernels[k](server.visible, _memory(memories, e, k), server.plan)
        _run_batch(server, latency)
        if server.features.requests[0] == 0:
            _fall_back(server, observer, latency)
        _to_next_decision(server, observer, latency, rules.limits)
        add_totals(server, rules.tier_weight, 1.0, terms)
        outcome.elapsed_s[e] = row.now - start
        if rules.weights[NUM_TERMS - 1] > 0.0:
            terms[NUM_TERMS - 1] -= starving(server, rules.weights[NUM_TERMS]) * outcome.elapsed_s[e]
        reward = 0.0
        for t in range(NUM_TERMS):
            reward += rules.weights[t] * terms[t]
        outcome.reward[e] = reward
        outcome.steps[e] += 1
        outcome.terminated[e] = is_over(server)
        late = rules.limits[1] > 0.0 and row.now >= rules.limits[1]
        long = rules.limits[0] > 0.0 and outcome.steps[e] >= rules.limits[0]
        outcome.truncated[e] = (late or long) and not outcome.terminated[e]
        encode(server.visible, observer, outcome.observation[e])


def _start_row(servers: Any, memories: Any, latency: Any, rules: Any, outcome: Any, e: int) -> None:
    server = row_of(servers, e)
    observer = _memory(memories, e, 0)
    empty(server)
    idle(server)
    _to_next_decision(server, observer, latency, rules.limits)
    outcome.steps[e] = 0
    encode(server.visible, observer, outcome.observation[e])


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
    """The compiled step: ``f(kernels, action int64[rows, n], servers, memories, latency, rules, outcome)``.

    Args:
        num_kernels: 1 for `allocation` (the codec alone), 1 + number of arms for `mixture`.
        parallel: spread the rows over numba's threads; the result does not depend on it.
    """
    signature = types.void(types.UniTuple(_KERNEL, num_kernels), typeof(np.zeros((1, 1), np.int64)), *_ROWS)
    return njit(signature, cache=True, parallel=parallel)(_step_rows)


@functools.cache
def start_row() -> Any:
    """The compiled start of an episode: ``f(servers, memories, latency, rules, outcome, row)``."""
    return njit(types.void(*_ROWS, types.int64), cache=True)(_start_row)
