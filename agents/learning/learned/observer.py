"""A learned policy that sees a user's observation: driven from Python, for the user's function is Python."""

from dataclasses import dataclass, field

import numpy as np

from agents.learning.learned.policy import LearnedPolicy
from engine.config import EngineConfig
from engine.server.state import Memory, Plan, View
from llmsched_env.asking import ASKED, HELD, due, set_levels
from llmsched_env.observation import OBSERVATION_SIZE, encode, remember
from llmsched_env.own import OwnFunction, seen_by


@dataclass(frozen=True)
class LearnedObserver(LearnedPolicy):
    """A trained network behind an observation function (`llmsched_env.own`), for actions that a codec reads."""

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
        """The codec's."""
        return self.bundle.codec

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        """Fresh memory: the codec's, iterations for which the present choice still holds, the choice."""
        codec = self.bundle.env.action.codec
        cells = codec.row_memory + 1 + len(codec.sizes)
        return Memory(self.params(config), np.zeros((num_requests, codec.request_memory)), np.zeros(cells))

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
        env, codec, m = self.bundle.env, self.bundle.env.action.codec, memory.row
        left = codec.row_memory
        remember(view, memory)
        comes = due(view.row[0], env.skip_decode_only, m[left])
        if comes == ASKED:
            m[left], m[left + 1 :] = codec.hold, self.choose(self._look(view, memory))[0]
        if comes >= HELD:
            m[left] -= 1.0
        set_levels(memory, m[left + 1 :] if comes >= HELD else np.array(codec.DECODES))
        codec.kernel(view, memory, plan)

    def _look(self, view: View, memory: Memory) -> np.ndarray:
        observation = np.zeros((1, OBSERVATION_SIZE), np.float32)
        encode(view, memory, observation[0])
        rows = View(view.request[None], view.queue[None], view.running[None], view.row[None])
        return self.observe(seen_by(observation, rows), (1, len(self.bundle.mean)), np.float32)
