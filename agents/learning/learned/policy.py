"""Learned policies as policies like the others: observation, small network, action codec in one compiled kernel.

`LearnedPolicy` takes the best action of each head; `RandomLegal` draws every choice with equal odds, the floor that a
learner must clear. Policies that choose among baselines are in `agents.learning.learned.mixture`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from agents.learning.learned.bundle import ACTIVATIONS, MAX_LAYERS, POLICY_FILE, Bundle
from engine.compiled.kept import kept
from engine.compiled.random import splitmix64
from engine.config import EngineConfig
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.server.policy import Kernel, Policy, require
from engine.server.state import Memory, Plan, View
from llmsched_env.config import EnvConfig
from llmsched_env.kernel import (
    ACTION_SIZES,
    CHOICE,
    ENV_PARAMS,
    ENV_REQUEST_MEMORY,
    ENV_ROW_MEMORY,
    HELD,
    OBSERVATION_SIZE,
    act,
    encode,
    env_params,
    remember,
)

SKIP, RELU, CLIP, HOLD, NUM_LAYERS, WIDTHS = range(ENV_PARAMS, ENV_PARAMS + 6)
"""Header of the network in `params`: flags, clip, iterations that a choice holds, number of layers, their
widths (MAX_LAYERS cells)."""
NETWORK = WIDTHS + MAX_LAYERS
"""Then mean and std of the observation, then for each layer the weights [in, out] and the biases."""
HEADS, NUM_HEADS = np.array(ACTION_SIZES), len(ACTION_SIZES)
SEED = ENV_PARAMS + 1


@kept
def forward(p: Any, observation: Any, scratch: Any) -> int:
    """Run the network; returns where in `scratch` the logits start.

    Args:
        p: float64, the policy's parameters (layout: see NETWORK).
        observation: float32[OBSERVATION_SIZE].
        scratch: float64, twice the largest width (the observation's included).
    """
    size, half = OBSERVATION_SIZE, scratch.shape[0] // 2
    mean, std, at = NETWORK, NETWORK + size, NETWORK + 2 * size
    clip = p[CLIP]
    for i in range(size):
        x = (observation[i] - p[mean + i]) / p[std + i]
        # Rounded as the learner's observations are.
        scratch[i] = np.float32(min(max(x, -clip), clip))
    source, target, inputs = 0, half, size
    layers = int(p[NUM_LAYERS])
    for k in range(layers):
        width = int(p[WIDTHS + k])
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
                scratch[target + j] = max(x, 0.0) if p[RELU] > 0.0 else np.tanh(x)
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


@kept
def is_asked(view: View, memory: Memory) -> bool:
    """Remember what `encode` will need; whether the environment would ask for a choice now.

    It passes an iteration without asking where only decodes run and no prompt waits, nor does it ask on an empty
    server.
    """
    remember(view, memory)
    row = view.row[0]
    waits = row.num_waiting + row.num_prefilling > 0
    return bool(waits or (memory.params[SKIP] <= 0.0 and row.num_running > 0))


@Kernel
def _learned(view: View, memory: Memory, plan: Plan) -> None:
    choice = np.zeros(NUM_HEADS, np.int64)
    if is_asked(view, memory):
        held = memory.row[CHOICE:ENV_ROW_MEMORY]
        if memory.row[HELD] % memory.params[HOLD] == 0.0:
            observation, scratch = np.empty(OBSERVATION_SIZE, np.float32), memory.row[ENV_ROW_MEMORY:]
            encode(view, memory, observation)
            best(scratch, forward(memory.params, observation, scratch), HEADS, choice)
            held[:] = choice
        memory.row[HELD] += 1.0
        choice[:] = held.astype(np.int64)
    act(view, memory, choice, plan)


@Kernel
def _random(view: View, memory: Memory, plan: Plan) -> None:
    choice = np.zeros(NUM_HEADS, np.int64)
    if is_asked(view, memory):
        word = splitmix64(np.uint64(int(memory.params[SEED])))
        for h in range(NUM_HEADS):
            word = splitmix64(np.uint64(word + np.uint64(NUM_HEADS * view.row[0].iterations + h)))
            choice[h] = np.int64(word % np.uint64(HEADS[h]))
    act(view, memory, choice, plan)


def network_params(bundle: Bundle) -> np.ndarray:
    """A bundle as the parameters of `forward` (float64), the codec's first."""
    header = np.zeros(NETWORK - ENV_PARAMS)
    start = ENV_PARAMS
    header[SKIP - start] = bundle.env.skip_decode_only
    header[RELU - start] = ACTIVATIONS.index(bundle.activation)
    header[CLIP - start] = bundle.clip
    header[HOLD - start] = bundle.env.hold
    header[NUM_LAYERS - start] = len(bundle.layers)
    for k, (_, bias) in enumerate(bundle.layers):
        header[WIDTHS - start + k] = len(bias)
    parts = [bundle.codec, header, bundle.mean, bundle.std]
    for weight, bias in bundle.layers:
        parts += [weight.T.astype(np.float64).ravel(), bias.astype(np.float64)]
    return np.concatenate(parts)


def scratch_cells(bundle: Bundle) -> int:
    """float64 cells that `forward` needs beside the parameters."""
    return 2 * max(OBSERVATION_SIZE, *(len(bias) for _, bias in bundle.layers))


class _Allocating(Policy):
    """A policy that sees what the environment shows and acts through its `allocation` action."""

    eviction: ClassVar[str] = "youngest, when a decode finds no block"
    request_memory: ClassVar[int] = ENV_REQUEST_MEMORY
    row_memory: ClassVar[int] = ENV_ROW_MEMORY


@dataclass(frozen=True)
class LearnedPolicy(_Allocating):
    """A trained network that chooses batch size, decode rule and prompt order of every batch."""

    name: ClassVar[str] = "learned"
    kernel: ClassVar[Kernel | None] = _learned

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
        return (LearnedMixture if bundle.env.action == "mixture" else LearnedPolicy)(path, bundle)

    def params(self, config: EngineConfig) -> np.ndarray:
        """Codec and network (see `network_params`)."""
        return network_params(self.bundle)

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        """Fresh memory with room for the layers."""
        cells = ENV_ROW_MEMORY + scratch_cells(self.bundle)
        return Memory(self.params(config), np.zeros((num_requests, ENV_REQUEST_MEMORY)), np.zeros(cells))

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
class RandomLegal(_Allocating):
    """Every choice of the `allocation` action with equal odds; a run depends on nothing but the seed."""

    name: ClassVar[str] = "random"
    evidence: ClassVar[str] = "ours: the floor for learners"
    kernel: ClassVar[Kernel | None] = _random

    seed: int = 0
    """Seed of the choices."""

    def __post_init__(self) -> None:
        """Check the seed.

        Raises:
            InputError: it is not a whole number from 0 to 2**53, which float64 parameters can hold.
        """
        whole = isinstance(self.seed, int) and not isinstance(self.seed, bool)
        require(whole and 0 <= self.seed <= 2**53, self, "seed", "a whole number from 0 to 2**53")

    def params(self, config: EngineConfig) -> np.ndarray:
        """The codec's parameters for the default environment, that it skips as in training, the seed."""
        env = EnvConfig(skip_decode_only=True)
        codec = env_params(load_profile(env.profile), env.budget, env.ageing, env.close)
        return np.concatenate([codec, [float(env.skip_decode_only), float(self.seed)]])
