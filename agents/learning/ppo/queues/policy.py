"""`LevelPolicy`: an actor whose actions are levels as real numbers, and a critic of its own that sees more.

The actor sees the first entries of the observation only, those that a policy has (asymmetric actor-critic, Pinto et
al., RSS 2018). Noise that a row keeps over a rollout is generalised state-dependent exploration (Raffin et al., CoRL
2021), SB3's own, in the weights of the last layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

CLIP = 5.0
"""Largest absolute value of a normalised observation."""
LEAST_STD, MOST_STD = 1e-6, 2.0
"""In levels."""


class Frame(NamedTuple):
    """What the actor's numbers mean."""

    mean: np.ndarray  # float64[observations], of all that a policy may see
    std: np.ndarray  # float64[observations]
    columns: np.ndarray  # int64[features], which of them the actor sees, rising
    base: np.ndarray  # float64[heads], levels to begin with


class Normalized(nn.Module):
    """Observations as networks see them: ``clip((observation - mean) / std)``; what is behind them stays."""

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.register_buffer("mean", th.as_tensor(frame.mean, dtype=th.float32))
        self.register_buffer("std", th.as_tensor(frame.std, dtype=th.float32))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """float32[n, entries]."""
        size = len(self.mean)
        own = ((observations[:, :size] - self.mean) / self.std).clamp(-CLIP, CLIP)
        return th.cat([own, observations[:, size:]], 1)

    def only(self, observations: th.Tensor, columns: th.Tensor) -> th.Tensor:
        """Some of the normalised observations, float32[n, columns]."""
        return ((observations[:, columns] - self.mean[columns]) / self.std[columns]).clamp(-CLIP, CLIP)


def _layers(inputs: int, widths: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for width in widths:
        modules += [nn.Linear(inputs, width), activation()]
        inputs = width
    return nn.Sequential(*modules)


class ActorAndCritic(nn.Module):
    """In the place of SB3's `MlpExtractor`: what comes before the last layers of actor and critic."""

    columns: th.Tensor

    def __init__(self, entries: int, frame: Frame, actor: Sequence[int], critic: Sequence[int]) -> None:
        super().__init__()
        self.normalized = Normalized(frame)
        self.register_buffer("columns", th.as_tensor(frame.columns))
        self.policy_net = _layers(len(frame.columns), actor, nn.Tanh)
        self.value_net = _layers(entries, critic, nn.SiLU)
        self.latent_dim_pi = 1 + (actor[-1] if actor else len(frame.columns))
        self.latent_dim_vf = critic[-1]

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        """float32[n, latent_dim_pi]."""
        # The constant is a feature: noise in the last layer's weights must shift whole levels, too.
        found = self.policy_net(self.normalized.only(features, self.columns))
        return th.cat([th.ones_like(found[:, :1]), found], 1)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        """float32[n, latent_dim_vf]."""
        found: th.Tensor = self.value_net(self.normalized(features))
        return found


class LevelPolicy(ActorCriticPolicy):
    """SB3's actor-critic policy with a Gaussian actor over levels and a critic that is fitted apart.

    Keywords beside SB3's: `frame`; `actor` and `critic`, widths of hidden layers; `std`, of the first policy in levels;
    `rates`, learning rates of std and hidden layers relative to the levels'; `averaging`, of the running mean.
    """

    def __init__(
        self,
        *args: Any,
        frame: Frame,
        actor: Sequence[int],
        critic: Sequence[int],
        std: float,
        rates: tuple[float, float],
        averaging: float,
        **kwargs: Any,
    ) -> None:
        self.frame, self.widths, self.first_std, self.rates, self.averaging = (
            frame,
            (actor, critic),
            std,
            rates,
            averaging,
        )
        super().__init__(*args, **{**kwargs, "ortho_init": False})

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor: Any = ActorAndCritic(self.features_dim, self.frame, *self.widths)
        latent = self.mlp_extractor.latent_dim_pi
        # With noise in the weights, the variance of a level is the sum over the features, each about 1.
        self.log_std_init = float(np.log(self.first_std / (latent**0.5 if self.use_sde else 1.0)))

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        net: Any = self.action_net
        with th.no_grad():
            net.weight.zero_()
            net.bias.copy_(th.as_tensor(self.frame.base, dtype=th.float32))
            # SB3 multiplies ones by the logarithm, which is right for gSDE only where it is not 0.
            self.log_std.fill_(self.log_std_init)
        net.bias.requires_grad_(False)
        self.actor_parts = nn.ModuleList([self.mlp_extractor.policy_net, net])
        mean_of = get_ema_multi_avg_fn(self.averaging)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self.actor_parts, multi_avg_fn=mean_of, use_buffers=True)
        self.averaged.requires_grad_(False)
        parts: list[dict[str, Any]] = [
            {"params": [net.weight], "part": 1.0},
            {"params": [self.log_std], "part": self.rates[0]},
        ]
        if hidden := list(self.mlp_extractor.policy_net.parameters()):
            parts.append({"params": hidden, "part": self.rates[1]})
        self.optimizer = self.optimizer_class(parts, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def critic(self) -> nn.Sequential:
        """The critic alone, float32[n, entries] -> float32[n, 1]; its parameters are the policy's."""
        parts = self.mlp_extractor
        return nn.Sequential(parts.normalized, parts.value_net, self.value_net)

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """As SB3's, without the values, which no action depends on: they are 0."""
        found = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(obs))
        actions = found.get_actions(deterministic)
        return actions, th.zeros(len(obs), 1, device=obs.device), found.log_prob(actions)

    def evaluate_actions(  # type: ignore[override]
        self, obs: th.Tensor, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """As SB3's, without the values, which nothing here is learned from: they are 0."""
        found = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(obs))
        return th.zeros(len(obs), device=obs.device), found.log_prob(actions), found.entropy()

    def draw_noise(self, rows: int, mirrored: int = 0) -> None:
        """Draw the noise that each row keeps from now on.

        Args:
            rows: of the environment.
            mirrored: size of the groups in which the second half explores against the first (0: none does).
        """
        self.reset_noise(rows)
        if mirrored > 1 and isinstance(self.action_dist, StateDependentNoiseDistribution):
            noise = self.action_dist.exploration_matrices.detach().clone()
            groups, half = noise.view(-1, mirrored, *noise.shape[1:]), mirrored // 2
            groups[:, half : 2 * half] = -groups[:, :half]
            self.action_dist.exploration_matrices = noise

    def level_std(self) -> th.Tensor:
        """Standard deviation of each level where features are at 1 standard deviation, float32[heads]."""
        return self.log_std.exp().square().sum(0).sqrt() if self.use_sde else self.log_std.exp()

    def clamp_std(self, least: float) -> None:
        """Keep the standard deviation of a level between `least` and MOST_STD."""
        with th.no_grad():
            std = self.level_std()
            self.log_std.add_((std.clamp(max(least, LEAST_STD), MOST_STD) / std).log())
