"""Advantages of rows that never end: rewards against the mean cost, traces in seconds, group means at the same time.

Rewards are differential, minus what a decision cost above the world's mean (average-cost PPO for queueing networks,
Dai and Gluzman, Stochastic Systems 2022), and relative to what the reference costs in that world. The trace of the
estimate decays with seconds as the discount does (`agents.learning.ppo.rollout`), and perhaps with decisions:

    delta_t = r_t + gamma_t V(s_{t+1}) - V(s_t),   gamma_t = exp(-dt / discount_s)
    A_t     = delta_t + gamma_t lambda exp(-dt / trace_s) A_{t+1}

and from it the mean of the group's other rows at the same time is taken, which met the same arrivals.
All arrays are [steps, rows].
"""

import numpy as np

UNIT_S = 10.0
"""Rewards are per so many seconds of the reference's mean cost."""
TINY = 1e-8
"""Added to what is divided by."""
LEAST_SPREAD = 0.05
"""Where no choice makes a difference, what there is of one is not made larger than this would be."""


def differential(cost: np.ndarray, elapsed: np.ndarray, mean: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Rewards: minus the cost above the mean.

    Args:
        cost: float64[steps, rows] of each decision.
        elapsed: seconds of each decision.
        mean: float64[rows], cost per second (0: plain rewards).
        unit: float64[rows], cost per second that counts as 1.
    """
    return np.asarray((mean * elapsed - cost) / (unit * UNIT_S))


def timed_advantages(
    rewards: np.ndarray, values: np.ndarray, last: np.ndarray, discount: np.ndarray, trace: np.ndarray
) -> np.ndarray:
    """The estimate of the module docstring.

    Args:
        rewards: of the decisions.
        values: before them.
        last: float64[rows], values behind the last one.
        discount: what is left of a value after each decision.
        trace: what is left of the trace after it.
    """
    found, carried, following = np.zeros_like(rewards), np.zeros_like(last), last
    for t in range(len(rewards) - 1, -1, -1):
        carried = rewards[t] + discount[t] * following - values[t] + trace[t] * carried
        found[t], following = carried, values[t]
    return found


def clock(elapsed: np.ndarray) -> np.ndarray:
    """Seconds since the start of the rollout before each decision and at the end, float64[steps + 1, rows]."""
    return np.concatenate([np.zeros((1, elapsed.shape[1])), np.cumsum(elapsed, 0)])


def less_others(values: np.ndarray, times: np.ndarray, size: int) -> np.ndarray:
    """Values minus the mean of the group's other rows at the same time, linear between their decisions.

    Args:
        values: float64[steps, rows].
        times: seconds of them.
        size: rows of a group, which follow each other.
    """
    found = np.empty_like(values)
    for first in range(0, values.shape[1], size):
        rows = range(first, first + size)
        at = times[:, first : first + size].ravel()
        shape = (len(values), size)
        others = sum(np.interp(at, times[:, e], values[:, e]) for e in rows)
        own = values[:, first : first + size]
        found[:, first : first + size] = own - (np.reshape(others, shape) - own) / (size - 1)
    return found


def balanced(advantages: np.ndarray, world: np.ndarray, worlds: int, equal_deviations: bool) -> np.ndarray:
    """Advantages without the mean of each world, worlds weighted alike whatever their rows, with deviation 1 together.

    Args:
        advantages: float64[steps, rows].
        world: int64[rows].
        worlds: how many there are.
        equal_deviations: whether those of each world get the same deviation before.
    """
    found = advantages.copy()
    for w in range(worlds):
        rows = world == w
        found[:, rows] -= found[:, rows].mean()
        spread = max(found[:, rows].std(), LEAST_SPREAD) if equal_deviations else 1.0
        found[:, rows] *= len(world) / (rows.sum() * worlds * spread)
    return np.asarray(found / (found.std() + TINY))
