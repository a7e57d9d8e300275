"""Fitting the critic: to returns, and to what the rows of a group differ by at the same time.

The actor learns from differences between rows on the same arrivals, and these are small beside what all of them share,
so a critic that explains returns well may still rank states badly. The second loss is on differences alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from torch import nn
from torch.nn.functional import smooth_l1_loss

from agents.learning.ppo.queues.advantages import clock

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


def differences(critic: nn.Module, rollout: Rollout, size: int, discount_s: float) -> Differences:
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
        behind = critic(th.from_numpy(rollout.observations[last, every])).numpy()[:, 0]
    found = (brought + np.exp((grid - end) / discount_s) * behind).reshape(PLACES, -1, size)
    targets = th.from_numpy((found - found.mean(2, keepdims=True)).astype(np.float32))
    seen = rollout.observations[place, every].reshape(*found.shape, -1)
    return Differences(th.from_numpy(seen), targets)


def draw(steps: int, batch: int, decisions: int, compared: int) -> list[tuple[th.Tensor, th.Tensor]]:
    """What each gradient step looks at, int64[batch] decisions and int64[compared] places, drawn before the first one.

    So the generator goes on at once, whoever takes the steps.

    Args:
        steps: gradient steps.
        batch: decisions in each.
        decisions: of a rollout.
        compared: times in each at which rows of a group are compared.
    """
    return [(th.randint(decisions, (batch,)), th.randint(PLACES, (compared,))) for _ in range(steps)]


def fit(
    critic: nn.Module,
    optimizer: th.optim.Optimizer,
    rollout: Rollout,
    compared: Differences | None,
    drawn: Sequence[tuple[th.Tensor, th.Tensor]],
    weight: float,
) -> float:
    """Some gradient steps of the critic; returns the last loss.

    Args:
        critic: float32[n, entries] -> float32[n, 1].
        optimizer: of its parameters.
        rollout: what to fit.
        compared: differences within groups, if they count.
        drawn: what each step looks at (`draw`).
        weight: of the loss on differences.
    """
    seen = th.from_numpy(rollout.observations.reshape(-1, rollout.observations.shape[-1]))
    returns = th.from_numpy(rollout.returns.reshape(-1).astype(np.float32))
    parameters = [*critic.parameters()]
    loss = th.zeros(())
    for chosen, places in drawn:
        loss = smooth_l1_loss(critic(seen[chosen])[:, 0], returns[chosen], beta=RETURN_SCALE)
        if compared is not None:
            loss = loss + weight * _of_differences(critic, compared, places)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        th.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
    return float(loss.detach())


def _of_differences(critic: nn.Module, compared: Differences, places: th.Tensor) -> th.Tensor:
    seen, target = compared.observations[places], compared.targets[places]
    values = critic(seen.flatten(0, 2)).view(target.shape)
    return smooth_l1_loss(values - values.mean(2, keepdim=True), target, beta=DIFFERENCE_SCALE)
