"""Learned policies as policies like the others: observation, small network, action codec in one compiled kernel.

`LearnedPolicy` takes the best action of each head; `RandomLegal` draws every choice with equal odds, the floor that a
learner must clear. Policies that choose among baselines are in `agents.learning.learned.mixture`.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from agents.learning.learned.bundle import ACTIVATIONS, MAX_LAYERS, POLICY_FILE, Bundle
from engine.compiled.kept import kept
from engine.compiled.random import splitmix64
from engine.compiled.records import cells_of, record
from engine.config import EngineConfig
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.ranges import whole
from engine.server.policy import Kernel, Policy
from engine.server.state import Memory, Plan, View
from llmsched_env.actions import ACTIONS, Allocation, Codec
from llmsched_env.asking import ASKED, HELD, due, set_levels
from llmsched_env.config import EnvConfig
from llmsched_env.observation import OBSERVATION_SIZE, encode, remember

HEADER = np.dtype(
    [
        ("skips", "f8"),  # whether nobody is asked about iterations without any prompt work
        ("hold", "f8"),  # iterations for which a choice holds
        ("relu", "f8"),  # whether the activation is relu, not tanh
        ("clips_at", "f8"),  # of normalised observations
        ("layers", "f8"),
        ("widths", "f8", (MAX_LAYERS,)),
    ],
    align=True,
)
"""A network's first parameters, behind those of the codec; then come mean and std of the observation, then for each
layer the weights [in, out] and the biases."""
NETWORK, _header = cells_of(HEADER), record(HEADER)


@kept
def forward(p: Any, observation: Any, scratch: Any) -> int:
    """Run the network; returns where in `scratch` the logits start.

    Args:
        p: float64, the network's parameters (layout: see HEADER).
        observation: float32[OBSERVATION_SIZE].
        scratch: float64, twice the largest width (the observation's included).
    """
    header, size, half = _header(p), OBSERVATION_SIZE, scratch.shape[0] // 2
    mean, std, at = NETWORK, NETWORK + size, NETWORK + 2 * size
    clip, relu = header.clips_at, header.relu > 0.0
    for i in range(size):
        x = (observation[i] - p[mean + i]) / p[std + i]
        # Rounded as the learner's observations are.
        scratch[i] = np.float32(min(max(x, -clip), clip))
    source, target, inputs = 0, half, size
    layers = int(header.layers)
    for k in range(layers):
        width = int(header.widths[k])
        bias = at + inputs * width
        for j in range(width):
            scratch[target + j] = p[bias + j]
        for i in range(inputs):
            x, start = scratch[source + i], at + i * width
            for j in range(width):
                scratch[target + j] += x * p[start + j]
        if k < layers - 1:
            for j in range(width):
                x = scratch[target + j]
                scratch[target + j] = max(x, 0.0) if relu else np.tanh(x)
        at, inputs = bias + width, width
        source, target = target, source
    return source


@kept
def best(scratch: Any, at: int, heads: Any, choice: Any) -> None:
    """The largest logit of each head (the first of equals), as SB3's deterministic prediction."""
    for h in range(heads.shape[0]):
        winner = 0
        for j in range(heads[h]):
            if scratch[at + j] > scratch[at + winner]:
                winner = j
        choice[h] = winner
        at += heads[h]


@cache
def _learned(action: str) -> Kernel:
    """The kernel of policies that act through the codec of this name.

    Its row memory: the codec's, iterations for which the present choice still holds, the choice, scratch of `forward`.
    """
    codec = ACTIONS[action]().codec
    make, params, left = codec.kernel, cells_of(codec.PARAMS), codec.row_memory
    heads, decodes = np.array(codec.sizes), np.array(codec.DECODES)
    first, end = left + 1, left + 1 + len(heads)

    def plan_learned(view: View, memory: Memory, plan: Plan) -> None:
        remember(view, memory)
        p, m = memory.params[params:], memory.row
        asking, choice = _header(p), m[first:end]
        comes = due(view.row[0], asking.skips > 0.0, m[left])
        if comes == ASKED:
            observation, scratch = np.empty(OBSERVATION_SIZE, np.float32), m[end:]
            encode(view, memory, observation)
            best(scratch, forward(p, observation, scratch), heads, choice)
            m[left] = asking.hold
        if comes >= HELD:
            m[left] -= 1.0
            set_levels(memory, choice)
        else:
            set_levels(memory, decodes)
        make(view, memory, plan)

    return Kernel(plan_learned)


_RANDOM = Allocation()
_MAKE, _PARAMS = _RANDOM.kernel, cells_of(_RANDOM.PARAMS)
_HEADS, _NUM_HEADS, _DECODES = np.array(_RANDOM.sizes), len(_RANDOM.sizes), np.array(_RANDOM.DECODES)


@Kernel
def _random(view: View, memory: Memory, plan: Plan) -> None:
    remember(view, memory)
    choice = np.zeros(_NUM_HEADS, np.int64)
    if due(view.row[0], memory.params[_PARAMS] > 0.0, 0.0) == ASKED:
        word = splitmix64(np.uint64(int(memory.params[_PARAMS + 1])))
        for h in range(_NUM_HEADS):
            word = splitmix64(np.uint64(word + np.uint64(_NUM_HEADS * view.row[0].iterations + h)))
            choice[h] = np.int64(word % np.uint64(_HEADS[h]))
    else:
        choice[:] = _DECODES
    set_levels(memory, choice)
    _MAKE(view, memory, plan)


def network_params(bundle: Bundle) -> np.ndarray:
    """A bundle as the parameters of `forward`, float64."""
    header = np.zeros(1, HEADER)
    header["skips"], header["hold"] = bundle.env.skip_decode_only, bundle.env.action.holds
    header["relu"], header["clips_at"] = ACTIVATIONS.index(bundle.activation), bundle.clip
    header["layers"] = len(bundle.layers)
    header["widths"][0, : len(bundle.layers)] = [len(bias) for _, bias in bundle.layers]
    parts = [header.view(np.float64), bundle.mean, bundle.std]
    for weight, bias in bundle.layers:
        parts += [weight.T.astype(np.float64).ravel(), bias.astype(np.float64)]
    return np.concatenate(parts)


def scratch_cells(bundle: Bundle) -> int:
    """float64 cells that `forward` needs beside the parameters."""
    return 2 * max(OBSERVATION_SIZE, *(len(bias) for _, bias in bundle.layers))


@dataclass(frozen=True)
class LearnedPolicy(Policy):
    """A trained network that chooses for every batch what the environment's action lets it choose."""

    name: ClassVar[str] = "learned"
    eviction: ClassVar[str] = "youngest, when a decode finds no block"

    path: str
    """Where it came from: the folder as it was given."""
    bundle: Bundle = field(repr=False, compare=False)
    """Network, normalisation and environment."""

    @classmethod
    def load(cls, folder: str | Path) -> "LearnedPolicy":
        """The policy of a bundle folder, or of a training run: its best bundle, or its last.

        Raises:
            InputError: neither, or a damaged or foreign bundle.
        """
        path = Path(folder)
        for place in (path, path / "best", path / "final"):
            if (place / POLICY_FILE).is_file():
                return cls.of(Bundle.load(place), str(folder))
        raise InputError(f"{folder}: expected a policy bundle ({POLICY_FILE}) or a training run with one")

    @staticmethod
    def of(bundle: Bundle, path: str) -> "LearnedPolicy":
        """The policy of a bundle; its action space decides of which kind."""
        from agents.learning.learned.mixture import LearnedMixture
        from agents.learning.learned.observer import LearnedObserver

        if bundle.env.observation:
            return LearnedObserver(path, bundle)
        return (LearnedPolicy if isinstance(bundle.env.action, Codec) else LearnedMixture)(path, bundle)

    @property
    def kernel(self) -> Kernel | None:  # type: ignore[override]  # one for each codec
        """Network and codec, compiled."""
        return _learned(self.bundle.env.action.codec.name)

    def params(self, config: EngineConfig) -> np.ndarray:
        """Those of the codec, then the network (see `network_params`)."""
        return np.concatenate([self.bundle.codec, network_params(self.bundle)])

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        """Fresh memory with room for the choice that holds and for the layers."""
        codec = self.bundle.env.action.codec
        cells = codec.row_memory + 1 + len(codec.sizes) + scratch_cells(self.bundle)
        return Memory(self.params(config), np.zeros((num_requests, codec.request_memory)), np.zeros(cells))

    def choose(self, observations: np.ndarray) -> np.ndarray:
        """The choices for observations as the environment gives them, float32[n, observations] -> int64[n, heads]."""
        p, heads = network_params(self.bundle), np.array(self.bundle.heads)
        scratch = np.zeros(scratch_cells(self.bundle))
        choices = np.zeros((len(observations), len(heads)), np.int64)
        for observation, choice in zip(observations, choices, strict=True):
            best(scratch, forward(p, observation, scratch), heads, choice)
        return choices

    @property
    def channel(self) -> str:
        """Predictions as in the environment in which it was trained."""
        return self.bundle.env.prediction

    @property
    def spec(self) -> str:
        """The folder, which is how the command line takes it."""
        return self.path


@dataclass(frozen=True)
class RandomLegal(Policy):
    """Every choice of the `allocation` action with equal odds; a run depends on nothing but the seed."""

    name: ClassVar[str] = "random"
    evidence: ClassVar[str] = "ours: the floor for learners"
    eviction: ClassVar[str] = LearnedPolicy.eviction
    request_memory: ClassVar[int] = _RANDOM.request_memory
    row_memory: ClassVar[int] = _RANDOM.row_memory
    kernel: ClassVar[Kernel | None] = _random

    seed: Annotated[int, whole(0, 2**53)] = 0
    """Seed of the choices, which float64 parameters can hold."""

    def params(self, config: EngineConfig) -> np.ndarray:
        """The codec's parameters for the default environment, that it skips as in training, the seed."""
        env = EnvConfig(skip_decode_only=True)
        codec = _RANDOM.params(load_profile(env.profile))
        return np.concatenate([codec, [float(env.skip_decode_only), float(self.seed)]])
