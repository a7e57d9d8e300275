"""Does the policy gradient point where the cost falls? Its cosine with the gradient by finite differences.

The reference is the derivative of the stationary cost with respect to a constant offset of every level, by central
differences on common arrivals and common noise, around the first policy with noise (levels are rounded, so without
noise the cost has steps). Beside it the gradient that the learner's rollouts give for the same offsets, with the policy
held still and only the critic learning.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch as th

from agents.learning.heldout import TRAINING_SEED
from agents.learning.ppo.queues.build import build_queue_model, levels_of
from agents.learning.ppo.queues.learner import QueuePPO
from agents.learning.ppo.train_config import TrainConfig
from engine.errors import InputError
from llmsched_env.config import EnvConfig
from llmsched_env.fleet import Fleet
from llmsched_env.observation import OBSERVATION_SIZE

REFERENCE_SEED = TRAINING_SEED - (1 << 21)
"""Traces of the reference gradient are drawn from this seed on."""
OFFSET, NOISE = 0.5, 0.7
"""Half the distance of the two policies that are compared, and the noise on every level, in levels."""
AT_ONCE = 16
"""Traces that are served side by side."""


class Gradient(NamedTuple):
    """A gradient of the cost with respect to the offsets of all levels."""

    single: np.ndarray  # float64[n, heads], from single traces or rollouts

    @property
    def mean(self) -> np.ndarray:
        """float64[heads]."""
        return np.asarray(self.single.mean(0))

    @property
    def error(self) -> np.ndarray:
        """Standard error of the mean, float64[heads]."""
        return np.asarray(self.single.std(0, ddof=1) / np.sqrt(len(self.single)))

    def cosine(self, reference: "Gradient") -> tuple[float, float, float]:
        """Cosines with another gradient: of the mean, and mean and standard error of those of single rollouts."""
        each = np.array([_cosine(one, reference.mean) for one in self.single])
        return _cosine(self.mean, reference.mean), float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-30))


def variants(config: TrainConfig) -> dict[str, TrainConfig]:
    """The recipe, what it is without each of its pieces, and the estimate of plain PPO on the same rollouts."""

    def without(**changes: Any) -> TrainConfig:
        return replace(config, queue=replace(config.queue, **changes))

    plain = {"privileged": False, "paired": False, "differences": 0.0, "resync": False, "trace_s": 0.0}
    return {
        "recipe": config,
        "plain": replace(without(**plain, exploration="steps"), discount_s=5.0, gae_lambda=0.9),
        "observed critic": without(privileged=False),
        "unpaired": without(paired=False),
        "no differences": without(differences=0.0),
        "no resync": without(resync=False),
        "whole trace": without(trace_s=0.0),
        "noise of steps": without(exploration="steps"),
    }


def at_rate(config: TrainConfig, rate: float) -> TrainConfig:
    """The same training in one world alone.

    Raises:
        InputError: no trainer for queues, or scenarios.
    """
    if not config.queue.is_on or config.env.scenarios:
        raise InputError("diagnose: expected a recipe with queue.group_size and rates, got another")
    env = replace(config.env, rates=(), workload=replace(config.env.workload, rate=rate))
    return replace(config, env=env)


def reference_gradient(config: TrainConfig, traces: int, progress: Callable[[int, int], object]) -> Gradient:
    """The gradient by finite differences, in cost per second for each level.

    Args:
        config: with one world; its teacher's levels are those around which it is.
        traces: how many.
        progress: called with traces done and all of them.
    """
    base = levels_of(config.teacher, config.env)(np.zeros((1, OBSERVATION_SIZE), np.float32))[0].astype(np.float64)
    found: list[np.ndarray] = []
    while len(found) < traces:
        progress(len(found), traces)
        first = REFERENCE_SEED + len(found)
        costs = _costs(config.env, base, range(first, first + min(AT_ONCE, traces - len(found))), config.queue.burn_in)
        found += list((costs[:, 0] - costs[:, 1]) / (2.0 * OFFSET))
    return Gradient(np.array(found))


def _costs(env: EnvConfig, base: np.ndarray, seeds: range, skipped: int) -> np.ndarray:
    """Mean cost per second on each trace with each offset up and down, float64[traces, 2, heads]."""
    heads = len(base)
    offsets = np.concatenate([np.eye(heads), -np.eye(heads)]) * OFFSET
    each = len(offsets)
    fleet = Fleet(len(seeds) * each, env)
    for k, seed in enumerate(seeds):
        fleet.start(k * each, env.workload.generate(seed))
        fleet.copy_row(k * each, range(k * each, (k + 1) * each))
    rng, highest = np.random.default_rng(seeds[0]), np.array(env.action.sizes) - 1
    arrived = fleet.servers.visible.row["next_arrival"][:, 0]
    cost, seconds = np.zeros(fleet.rows), np.zeros(fleet.rows)
    while not fleet.outcome.terminated.all():
        noise = np.repeat(rng.normal(0.0, NOISE, (len(seeds), heads)), each, axis=0)
        levels = base + np.tile(offsets, (len(seeds), 1)) + noise
        counts = (arrived >= skipped) & ~fleet.outcome.terminated
        fleet.step(np.clip(np.rint(levels), 0, highest).astype(np.int64))
        cost -= np.where(counts, fleet.outcome.reward, 0.0)
        seconds += np.where(counts, fleet.outcome.elapsed_s, 0.0)
    return (cost / seconds).reshape(len(seeds), 2, heads)


def estimated_gradients(config: TrainConfig, warm_up: int, rollouts: int) -> Iterator[np.ndarray]:
    """What single rollouts give for the offsets, float64[heads] each, once the critic is warm.

    Args:
        config: with one world.
        warm_up: rollouts before the first.
        rollouts: how many.
    """
    model = build_queue_model(config, config.learning_rate)
    env: Any = model.get_env()
    _, callback = model._setup_learn(1, None)
    for k in range(warm_up + rollouts):
        model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
        if k >= warm_up:
            yield offset_gradient(model)
        model.begin_fit()


def offset_gradient(model: QueuePPO) -> np.ndarray:
    """The gradient of the surrogate loss of the buffer's rollout by the offsets of the levels, float64[heads]."""
    buffer, weight = model.rollout_buffer, model.policy.action_net.get_parameter("weight")
    seen = th.from_numpy(buffer.observations.reshape(-1, buffer.observations.shape[-1]))
    actions = th.from_numpy(buffer.actions.reshape(len(seen), -1))
    advantages = th.from_numpy(buffer.advantages.reshape(-1))
    loss = -(advantages * model.policy.evaluate_actions(seen, actions)[1]).mean()
    (gradient,) = th.autograd.grad(loss, [weight])
    # The first column belongs to the constant feature.
    return np.asarray(gradient[:, 0].numpy().astype(np.float64))
