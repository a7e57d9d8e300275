"""A learned policy that sees a user's observation: driven from Python, for the user's function is Python."""

from dataclasses import dataclass, field

import numpy as np

from agents.learning.learned.policy import HOLD, SKIP, WIDTHS, LearnedPolicy, is_asked
from engine.config import EngineConfig
from engine.server.state import Memory, Plan, View
from llmsched_env.kernel import (
    CHOICE,
    ENV_PARAMS,
    ENV_REQUEST_MEMORY,
    ENV_ROW_MEMORY,
    HELD,
    OBSERVATION_SIZE,
    act,
    encode,
)
from llmsched_env.own import OwnFunction, seen_by


@dataclass(frozen=True)
class LearnedObserver(LearnedPolicy):
    """A trained network behind an observation function (`llmsched_env.own`), for the `allocation` action."""

    kernel = None  # the observation is Python code

    observe: OwnFunction = field(init=False, repr=False, compare=False)
    """The user's function."""

    def __post_init__(self) -> None:
        """Find the function.

        Raises:
            InputError: it is not there, or was edited since the training.
        """
        env = self.bundle.env
        observe = OwnFunction(env.observation, env.observation_sha256, "env.observation")
        object.__setattr__(self, "observe", observe)

    def params(self, config: EngineConfig) -> np.ndarray:
        """The codec's, then what says when a choice is due."""
        header = np.zeros(WIDTHS - ENV_PARAMS)
        header[SKIP - ENV_PARAMS], header[HOLD - ENV_PARAMS] = self.bundle.env.skip_decode_only, self.bundle.env.hold
        return np.concatenate([self.bundle.codec, header])

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        """Fresh memory; the layers are not in it."""
        return Memory(self.params(config), np.zeros((num_requests, ENV_REQUEST_MEMORY)), np.zeros(ENV_ROW_MEMORY))

    def choose(self, observations: np.ndarray) -> np.ndarray:
        """The choices for observations of the user's kind, float32[n, observations] -> int64[n, heads]."""
        bundle = self.bundle
        scaled = np.clip((observations - bundle.mean) / bundle.std, -bundle.clip, bundle.clip)
        x = scaled.astype(np.float32).astype(np.float64)
        for k, (weight, bias) in enumerate(bundle.layers):
            x = x @ weight.T.astype(np.float64) + bias
            if k < len(bundle.layers) - 1:
                x = np.tanh(x) if bundle.activation == "tanh" else np.maximum(x, 0.0)
        ends = np.cumsum(bundle.heads)[:-1]
        return np.stack([head.argmax(1) for head in np.split(x, ends, axis=1)], axis=1)

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        """Choose as the environment would have asked, and let the codec build the batch."""
        choice = np.zeros(len(self.bundle.heads), np.int64)
        if is_asked(view, memory):
            if memory.row[HELD] % memory.params[HOLD] == 0.0:
                memory.row[CHOICE:ENV_ROW_MEMORY] = self.choose(self._look(view, memory))[0]
            memory.row[HELD] += 1.0
            choice[:] = memory.row[CHOICE:ENV_ROW_MEMORY]
        act(view, memory, choice, plan)

    def _look(self, view: View, memory: Memory) -> np.ndarray:
        observation = np.zeros((1, OBSERVATION_SIZE), np.float32)
        encode(view, memory, observation[0])
        rows = View(view.request[None], view.queue[None], view.running[None], view.row[None])
        return self.observe(seen_by(observation, rows), (1, len(self.bundle.mean)), np.float32)
