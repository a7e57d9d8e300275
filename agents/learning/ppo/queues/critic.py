"""Fitting the critic: to returns, and to what the rows of a group differ by at the same time.

The actor learns from differences between rows on the same arrivals, and these are small beside what all of them share,
so a critic that explains returns well may still rank states badly. The second loss is on differences alone.
"""

from typing import NamedTuple

import numpy as np
import torch as th
from torch.nn.functional import smooth_l1_loss

from agents.learning.ppo.queues.advantages import clock
from agents.learning.ppo.queues.policy import LevelPolicy

PLACES = 24
"""Times in a rollout at which the rows of a group are compared."""
COMPARED = 3
"""Of them, in one gradient step."""
RETURN_SCALE, DIFFERENCE_SCALE = 3.0, 0.3
"""Errors from which on losses are linear."""
MAX_NORM = 5.0


class Rollout(NamedTuple):
    """What the critic is fitted to."""

    observations: np.ndarray  # float32[steps, rows, entries]
    returns: np.ndarray  # [steps, rows]
    rewards: np.ndarray  # [steps, rows]
    elapsed: np.ndarray  # [steps, rows], s


class Differences(NamedTuple):
    """Rows of groups at common times."""

    observations: th.Tensor  # float32[PLACES, groups, size, entries]
    targets: th.Tensor  # float32[PLACES, groups, size], less the mean of the group


def differences(policy: LevelPolicy, rollout: Rollout, size: int, discount_s: float) -> Differences:
    """What the rest of the rollout brings, and the value at its end, until the first row of a group is through."""
    rewards, elapsed = rollout.rewards, rollout.elapsed
    steps, rows = rewards.shape
    times, total = clock(elapsed), clock(rewards)
    end = np.repeat(times[-1].reshape(-1, size).min(1), size)
    grid = np.linspace(0.05, 0.9, PLACES)[:, None] * end
    place, brought, last = np.zeros((PLACES, rows), np.int64), np.zeros((PLACES, rows)), np.zeros(rows, np.int64)
    for e in range(rows):
        place[:, e] = np.clip(np.searchsorted(times[:-1, e], grid[:, e]), 0, steps - 1)
        last[e] = np.clip(np.searchsorted(times[:-1, e], end[e]), 0, steps - 1)
        brought[:, e] = np.interp(end[e], times[:, e], total[:, e]) - np.interp(grid[:, e], times[:, e], total[:, e])
    every = np.arange(rows)
    with th.no_grad():
        behind = policy.predict_values(th.from_numpy(rollout.observations[last, every])).numpy()[:, 0]
    found = (brought + np.exp((grid - end) / discount_s) * behind).reshape(PLACES, -1, size)
    targets = th.from_numpy((found - found.mean(2, keepdims=True)).astype(np.float32))
    seen = rollout.observations[place, every].reshape(*found.shape, -1)
    return Differences(th.from_numpy(seen), targets)


def fit(
    policy: LevelPolicy,
    optimizer: th.optim.Optimizer,
    rollout: Rollout,
    compared: Differences | None,
    steps: int,
    batch: int,
    weight: float,
) -> float:
    """Some gradient steps of the critic; returns the last loss.

    Args:
        policy: whose critic it is.
        optimizer: of its parameters.
        rollout: what to fit.
        compared: differences within groups, if they count.
        steps: gradient steps.
        batch: decisions in each.
        weight: of the loss on differences.
    """
    seen = th.from_numpy(rollout.observations.reshape(-1, rollout.observations.shape[-1]))
    returns = th.from_numpy(rollout.returns.reshape(-1).astype(np.float32))
    parameters = policy.critic_parameters()
    loss = th.zeros(())
    for _ in range(steps):
        chosen = th.randint(len(seen), (batch,))
        loss = smooth_l1_loss(policy.predict_values(seen[chosen])[:, 0], returns[chosen], beta=RETURN_SCALE)
        if compared is not None:
            loss = loss + weight * _of_differences(policy, compared)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        th.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
    return float(loss.detach())


def _of_differences(policy: LevelPolicy, compared: Differences) -> th.Tensor:
    chosen = th.randint(len(compared.targets), (COMPARED,))
    seen, target = compared.observations[chosen], compared.targets[chosen]
    values = policy.predict_values(seen.flatten(0, 2)).view(target.shape)
    return smooth_l1_loss(values - values.mean(2, keepdim=True), target, beta=DIFFERENCE_SCALE)
