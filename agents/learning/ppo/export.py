"""From an actor-critic model of Stable-Baselines3 to a bundle."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from agents.learning.learned.bundle import Bundle
from agents.learning.learned.layers import ACTIVATIONS
from agents.learning.ppo.normalize import TimedNormalize
from agents.work.provenance import TRAINS, source_hash, versions
from engine.device.latency import load_profile
from engine.errors import InputError
from llmsched_env.config import EnvConfig


def export(model: OnPolicyAlgorithm, normalizer: VecNormalize | None, env: EnvConfig, command: str = "") -> Bundle:
    """The actor of a model as a bundle.

    Args:
        model: an SB3 algorithm with an `ActorCriticPolicy` of plain layers (PPO, A2C).
        normalizer: the `TimedNormalize` that it was trained behind, or None.
        env: the environment that it was trained on.
        command: how the training was started.

    Raises:
        InputError: the network is not a plain stack of layers with one activation.
    """
    layers, activation = _actor(model.policy)
    inputs = layers[0][0].shape[1]
    mean, std, clip = np.zeros(inputs), np.ones(inputs), float(np.finfo(np.float32).max)
    if isinstance(normalizer, TimedNormalize):
        (mean, std), clip = normalizer.scale, float(normalizer.clip_obs)
    return Bundle(
        layers=tuple(layers),
        activation=activation,
        mean=mean,
        std=std,
        clip=clip,
        codec=env.action.codec.params(load_profile(env.profile)),
        env=env,
        command=command,
        timesteps=int(model.num_timesteps),
        versions=versions(TRAINS),
        sources=source_hash(),
    )


def _actor(policy: Any) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Weights and biases of the actor's layers, and the activation between them."""
    hidden = list(policy.mlp_extractor.policy_net)
    kinds = {type(module).__name__.lower() for module in hidden if not isinstance(module, th.nn.Linear)}
    if len(kinds) > 1 or not kinds <= set(ACTIVATIONS):
        raise InputError(f"export: expected layers with one of {', '.join(ACTIVATIONS)}, got {sorted(kinds)}")
    linear = [module for module in (*hidden, policy.action_net) if isinstance(module, th.nn.Linear)]
    return [(numbers(module.weight), numbers(module.bias)) for module in linear], next(iter(kinds), "tanh")


def numbers(parameter: th.Tensor) -> np.ndarray:
    """A parameter of a network as a bundle holds it, float32."""
    return np.asarray(parameter.detach().cpu().numpy(), np.float32)
