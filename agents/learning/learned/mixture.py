"""`LearnedMixture`: a trained network chooses which baseline builds the next batch."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

import baselines
from agents.learning.learned.network import best, forward
from agents.learning.learned.policy import LearnedPolicy
from engine.compiled.random import splitmix64
from engine.compiled.records import cells_of
from engine.config import EngineConfig
from engine.server.core import begin
from engine.server.plan import clear
from engine.server.state import Memory, Plan, Server, View, new_server
from llmsched_env.actions import Mixture
from llmsched_env.asking import ASKED, due, set_levels
from llmsched_env.observation import OBSERVATION_SIZE, encode, remember


class MixtureMemory(NamedTuple):
    """What a mixture remembers in a run."""

    own: Memory  # of network, observer and codec
    arms: tuple[Memory, ...]  # of each baseline
    trial: Server  # where plans are tried out


def draw(logits: np.ndarray, iteration: int) -> int:
    """An arm with the odds of softmax(logits); a run depends on nothing but the trace."""
    odds = np.cumsum(np.exp(logits - logits.max()))
    uniform = float(splitmix64(np.uint64(iteration))) / 2.0**64
    return min(int(np.searchsorted(odds, uniform * odds[-1], side="right")), len(logits) - 1)


def make_legal(view: View, plan: Plan, trial: Server) -> None:
    """Cut a plan to what can be done, by the rule with which the environment does it (`engine.server.core.begin`).

    Baselines that reserve KV for a whole request rely on it that every request was admitted by themselves; among
    others their plans may ask for more than there is.

    Args:
        view: the server.
        plan: changed in place.
        trial: memory for a copy of the server.
    """
    for copy, array in zip(trial.visible, view, strict=True):
        copy[...] = array
    begin(trial._replace(plan=plan), False)
    size = int(plan.size[0])
    kept = plan.entry[:size][plan.entry["tokens"][:size] != 0].copy()
    plan.entry[: len(kept)] = kept
    plan.size[0] = len(kept)


@dataclass(frozen=True)
class LearnedMixture(LearnedPolicy):
    """A trained network that chooses (or draws) which baseline builds the next batch; it chooses in Python."""

    name: ClassVar[str] = "learned-mixture"
    eviction: ClassVar[str] = "as the chosen baseline"

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        """Fresh memory for the network and every arm."""
        arms = tuple(baselines.make(arm).memory(config, num_requests) for arm in self._arms)
        own = super().memory(config, num_requests)
        return MixtureMemory(own, arms, new_server(num_requests, 1))  # type: ignore[return-value]

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        """Let the chosen arm plan; if it waits while there is nothing to wait for, the codec plans instead."""
        assert isinstance(memory, MixtureMemory)
        own = memory.own
        env, codec = self.bundle.env, self.bundle.env.action.codec
        observation, choice = np.empty(OBSERVATION_SIZE, np.float32), np.zeros(1, np.int64)
        remember(view, own)
        if due(view.row[0], env.skip_decode_only, 0.0) != ASKED:
            set_levels(own, np.array(codec.DECODES))
            codec.kernel(view, own, plan)
            return
        encode(view, own, observation)
        scratch = own.row[codec.row_memory + 1 + len(codec.sizes) :]
        logits = forward(own.params[cells_of(codec.PARAMS) :], observation, scratch)
        if self.bundle.sampled:
            choice[0] = draw(scratch[logits : logits + len(memory.arms)], int(view.row[0].iterations))
        else:
            best(scratch, logits, np.array(self.bundle.heads), choice)
        kernel = baselines.make(self._arms[choice[0]]).kernel
        assert kernel is not None
        kernel(view, memory.arms[choice[0]], plan)
        make_legal(view, plan, memory.trial)
        row = view.row[0]
        stuck = plan.size[0] == 0 and row.num_waiting + row.num_running > 0
        if stuck and row.next_arrival == row.num_requests and plan.wake[0] == np.inf:
            clear(view, plan)
            set_levels(own, np.array(codec.FALLBACK))
            codec.kernel(view, own, plan)

    @property
    def _arms(self) -> tuple[str, ...]:
        action = self.bundle.env.action
        assert isinstance(action, Mixture)
        return action.arms
