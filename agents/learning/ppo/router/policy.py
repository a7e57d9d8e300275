"""`ScorePolicy`: an actor that scores every replica by one network and draws from the softmax, and a critic."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from agents.learning.learned.layers import Layers
from agents.learning.ppo.export import numbers
from engine.cluster.features import REPLICA_NAMES, REQUEST_NAMES

CLIP = 1e4
"""Largest absolute value of a normalised feature: none is cut off, for replicas differ in overload, too."""
_REPLICA, _REQUEST = len(REPLICA_NAMES), len(REQUEST_NAMES)


class ScoreFrame(NamedTuple):
    """Where the actor begins."""

    mean: np.ndarray  # float64[features], of a replica and of the request
    std: np.ndarray  # float64[features]
    costs: np.ndarray  # float64[features], of each normalised feature: the first scores are less these
    sharpness: float  # logits for each unit of cost


class ScoreAndValue(nn.Module):
    """In the place of SB3's `MlpExtractor`: the logits of all replicas, and what the critic sees of them.

    The score is a rule that is linear from the start, plus a hidden layer that has nothing to say at first. The critic
    sees mean and maximum of the features over the replicas: it cannot tell them apart by their places either.
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, replicas: int, frame: ScoreFrame, width: int, critic: int) -> None:
        super().__init__()
        self.replicas, inputs = replicas, _REPLICA + _REQUEST
        self.register_buffer("mean", th.as_tensor(frame.mean, dtype=th.float32))
        self.register_buffer("std", th.as_tensor(frame.std, dtype=th.float32))
        self.rule = nn.Linear(inputs, 1, bias=False)
        self.hidden, self.output = nn.Linear(inputs, width), nn.Linear(width, 1, bias=False)
        with th.no_grad():
            self.rule.weight.copy_(th.as_tensor(-frame.sharpness * frame.costs[None], dtype=th.float32))
            self.output.weight.zero_()
        self.critic = nn.Sequential(nn.Linear(2 * _REPLICA + _REQUEST, critic), nn.Tanh())
        self.latent_dim_pi, self.latent_dim_vf = replicas, critic

    def _features(self, observations: th.Tensor) -> th.Tensor:
        """float32[n, replicas, features], normalised."""
        size = self.replicas * _REPLICA
        own = observations[:, :size].view(-1, self.replicas, _REPLICA)
        common = observations[:, None, size:].expand(-1, self.replicas, -1)
        return (th.cat([own, common], 2) - self.mean) / self.std

    def _scores(self, x: th.Tensor) -> th.Tensor:
        found: th.Tensor = self.rule(x) + self.output(th.relu(self.hidden(x)))
        return found[:, :, 0]

    def _values(self, x: th.Tensor) -> th.Tensor:
        squeezed = x.sign() * x.abs().log1p()  # queues of any length
        own = squeezed[:, :, :_REPLICA]
        found: th.Tensor = self.critic(th.cat([own.mean(1), own.amax(1), squeezed[:, 0, _REPLICA:]], 1))
        return found

    def forward(self, observations: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Logits float32[n, replicas], and the critic's float32[n, latent_dim_vf]."""
        x = self._features(observations)
        return self._scores(x), self._values(x)

    def forward_actor(self, observations: th.Tensor) -> th.Tensor:
        """The logits."""
        return self._scores(self._features(observations))

    def forward_critic(self, observations: th.Tensor) -> th.Tensor:
        """What the critic's last layer sees."""
        return self._values(self._features(observations))

    def layers(self) -> Layers:
        """The score as layers with relu between them: the rule as a hidden unit for each of its signs."""
        rule, hidden = numbers(self.rule.weight), numbers(self.hidden.weight)
        weights = np.concatenate([rule, -rule, hidden])
        biases = np.concatenate([np.zeros(2, np.float32), numbers(self.hidden.bias)])
        output = np.concatenate([np.array([[1.0, -1.0]], np.float32), numbers(self.output.weight)], 1)
        return (weights, biases), (output, np.zeros(1, np.float32))


class ScorePolicy(ActorCriticPolicy):
    """SB3's actor-critic policy with `ScoreAndValue`.

    Keywords beside SB3's: `frame`, `replicas`, `width` of the hidden layer, `critic`, that of the critic's.
    """

    def __init__(self, *args: Any, frame: ScoreFrame, replicas: int, width: int, critic: int, **kwargs: Any) -> None:
        self.frame, self.sizes = frame, (replicas, width, critic)
        super().__init__(*args, **{**kwargs, "ortho_init": False})

    def _build_mlp_extractor(self) -> None:
        replicas, width, critic = self.sizes
        self.mlp_extractor: Any = ScoreAndValue(replicas, self.frame, width, critic)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # the extractor gives logits
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
