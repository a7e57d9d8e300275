"""A warm start: the network learns to choose as a baseline does, and what that is worth; PPO goes on from there.

The network is fitted to the choices of a teacher (`agents.learning.teachers`) by cross-entropy, on states that it
meets itself, with a share of the probability left to the levels beside (without it PPO would have nothing to explore);
the critic is then fitted to the returns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import CallbackList
from torch.nn.functional import log_softmax, mse_loss

from agents.learning.ppo.normalize import TimedNormalize
from agents.learning.ppo.rollout import TimedPPO
from agents.learning.teachers import Teacher
from engine.errors import InputError

SPREAD = 0.3
"""Probability that each head keeps for the levels beside the teacher's."""
EPOCHS, BATCH = 4, 2048
LEAST_STEPS = 400
"""Gradient steps of the actor at least, however few decisions there are."""
CRITIC_ROLLOUTS = 4


def _sizes(space: Any) -> list[int]:
    """Levels of each head of a `MultiDiscrete`."""
    return [int(size) for size in space.nvec]


def _soft_targets(choices: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """For each head of so many levels float32[n, levels]: the choice, SPREAD shared among the levels beside it."""
    found = []
    for head, size in enumerate(sizes):
        target = np.zeros((len(choices), size), np.float32)
        rows = np.arange(len(choices))
        for step in (-1, 1):
            beside = choices[:, head] + step
            inside = (beside >= 0) & (beside < size)
            target[rows[inside], beside[inside]] = SPREAD / 2.0
        target[rows, choices[:, head]] = 1.0 - target.sum(1)
        found.append(target)
    return found


def _watch(model: TimedPPO, env: TimedNormalize, choose: Teacher, decisions: int) -> tuple[np.ndarray, np.ndarray]:
    """Let the teacher act; observations as the environment gives them and its choices."""
    rng = np.random.default_rng(model.seed)
    env.reset()
    observations, choices = [], []
    for _ in range(max(1, decisions // env.num_envs)):
        raw = np.array(env.get_original_obs())
        choice = choose(raw)
        observations.append(raw)
        choices.append(choice)
        stray = np.clip(choice + rng.integers(-1, 2, choice.shape), 0, np.array(_sizes(env.action_space)) - 1)
        env.step(np.where(rng.random(choice.shape) < SPREAD, stray, choice))
    return np.concatenate(observations), np.concatenate(choices)


def imitate(model: TimedPPO, choose: Teacher, decisions: int) -> dict[str, float]:
    """Fit the actor to the teacher and the critic to what follows; the normalisation statistics come along.

    Args:
        model: not trained yet, on a `TimedNormalize`.
        choose: the teacher.
        decisions: how many of its choices to learn from.

    Returns:
        ``agreement``, the share of decisions in which every head's best level is the teacher's; ``value_loss``.

    Raises:
        InputError: the environment is not normalised.
    """
    env: Any = model.get_env()
    if not isinstance(env, TimedNormalize):
        raise InputError("teacher: expected normalize: true")
    raw, choices = _watch(model, env, choose, decisions)
    observations = th.as_tensor(env.normalize_obs(raw))
    targets = [th.as_tensor(target) for target in _soft_targets(choices, _sizes(model.action_space))]
    rng = np.random.default_rng(model.seed)
    policy = model.policy
    optimizer = th.optim.Adam(policy.parameters(), lr=1e-3)
    parts = max(1, len(raw) // BATCH)
    for _ in range(max(EPOCHS, -(-LEAST_STEPS // parts))):
        for part in np.array_split(rng.permutation(len(raw)), parts):
            rows = th.as_tensor(part)
            logits = _logits(policy, observations[rows])
            likelihood = [(t[rows] * log_softmax(x, 1)).sum(1).mean() for t, x in zip(targets, logits, strict=True)]
            _descend(optimizer, -th.stack(likelihood).sum())
    with th.no_grad():
        best = np.column_stack([x.argmax(1).numpy() for x in _logits(policy, observations)])
    return {"agreement": float((best == choices).all(1).mean()), "value_loss": _fit_critic(model, env)}


def _descend(optimizer: th.optim.Optimizer, loss: th.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _logits(policy: Any, observations: th.Tensor) -> list[th.Tensor]:
    latent = policy.mlp_extractor.forward_actor(policy.pi_features_extractor(observations))
    return list(th.split(policy.action_net(latent), _sizes(policy.action_space), dim=1))


def _fit_critic(model: TimedPPO, env: Any) -> float:
    """Regress the critic, and nothing else, on the returns of a few rollouts; returns the last loss."""
    policy: Any = model.policy
    critic = [policy.mlp_extractor.value_net, policy.value_net]
    if not policy.share_features_extractor:
        critic.append(policy.vf_features_extractor)
    parameters = [parameter for module in critic for parameter in module.parameters()]
    optimizer = th.optim.Adam(parameters, lr=1e-3)
    steps = model.num_timesteps
    model._last_obs, model._last_episode_starts = env.reset(), np.ones(env.num_envs, bool)
    callback = CallbackList([])
    callback.init_callback(model)
    loss = th.zeros(())
    for _ in range(CRITIC_ROLLOUTS):
        model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
        for _ in range(EPOCHS):
            for data in model.rollout_buffer.get(model.batch_size):
                loss = mse_loss(policy.predict_values(data.observations).flatten(), data.returns)
                _descend(optimizer, loss)
    model.num_timesteps = steps
    return float(loss.detach())
