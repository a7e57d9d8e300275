"""Learned policies as policies like the others: observation, small network, action codec in one compiled kernel.

`LearnedPolicy` takes the best action of each head; `RandomLegal` draws every choice with equal odds, the floor that a
learner must clear. Other kinds are in `mixture` (a choice of baselines) and `observer` (a user's observation); `load`
finds the kind.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, ClassVar, Self

import numpy as np

from agents.learning.learned.bundle import Bundle
from agents.learning.learned.network import best, forward, header_of, network_params, scratch_cells
from engine.compiled.random import splitmix64
from engine.compiled.records import cells_of
from engine.config import EngineConfig
from engine.device.latency import LatencyModel, load_profile
from engine.ranges import whole
from engine.server.policy import Kernel, Policy
from engine.server.state import Memory, Plan, View
from llmsched_env.actions import ACTIONS, Allocation
from llmsched_env.asking import ASKED, HELD, due, set_levels
from llmsched_env.config import EnvConfig
from llmsched_env.observation import OBSERVATION_SIZE, encode, remember


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
        asking, choice = header_of(p), m[first:end]
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


@dataclass(frozen=True)
class LearnedPolicy(Policy):
    """A trained network that chooses for every batch what the environment's action lets it choose."""

    name: ClassVar[str] = "learned"
    paper: ClassVar[str] = "ours"
    knows: ClassVar[str] = "prompt length, tier, batch times, a latency profile"
    evidence: ClassVar[str] = "ours: trained on simulated requests"
    eviction: ClassVar[str] = "youngest, when a decode finds no block"

    path: str
    """Where it came from: the folder as it was given."""
    bundle: Bundle = field(repr=False, compare=False)
    """Network, normalisation and environment."""

    @property
    def kernel(self) -> Kernel | None:  # type: ignore[override]  # one for each codec
        """What `make_kernel` makes."""
        return self.make_kernel()

    def make_kernel(self) -> Kernel:
        """Network and codec, compiled; the same for all policies of this action."""
        return _learned(self.bundle.env.action.codec.name)

    def on(self, model: LatencyModel) -> Self:
        """The same network; the codec predicts with the numbers of this device."""
        codec = self.bundle.env.action.codec.told(self.bundle.codec, model)
        return replace(self, bundle=replace(self.bundle, codec=codec))

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
    paper: ClassVar[str] = "ours"
    knows: ClassVar[str] = "prompt length, tier, batch times"
    evidence: ClassVar[str] = "ours: the floor for learners"
    eviction: ClassVar[str] = LearnedPolicy.eviction
    request_memory: ClassVar[int] = _RANDOM.request_memory
    row_memory: ClassVar[int] = _RANDOM.row_memory
    kernel: ClassVar[Kernel | None] = _random

    _model: ClassVar[LatencyModel | None] = None

    seed: Annotated[int, whole(0, 2**53)] = 0
    """Seed of the choices, which float64 parameters can hold."""

    def on(self, model: LatencyModel) -> Self:
        """The same choices; the codec predicts with the numbers of this device."""
        return self._told(model)

    def params(self, config: EngineConfig) -> np.ndarray:
        """The codec's parameters on this device (not told: the default environment's), that it skips, the seed."""
        env = EnvConfig(skip_decode_only=True)
        codec = _RANDOM.params(self._model or load_profile(env.profile))
        return np.concatenate([codec, [float(env.skip_decode_only), float(self.seed)]])
