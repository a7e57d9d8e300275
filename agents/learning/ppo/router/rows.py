"""`RouterFleets`: vector environments of routers side by side as one, the reward of each in its own unit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from llmsched_env.routing.vector import LLMSchedRouterVectorEnv


class RouterFleets(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Fleets of the same number of replicas, some rows of each.

    What a request waits at a high load is a hundred times what it waits at a low one: each reward is divided by a unit
    of its environment, so that a per cent counts the same everywhere.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, envs: Sequence[LLMSchedRouterVectorEnv], units: Sequence[float]) -> None:
        """Put them side by side.

        Args:
            envs: all with the same spaces.
            units: what a reward of each is divided by.
        """
        self.parts = list(envs)
        self.ends = np.cumsum([env.num_envs for env in envs])
        self.num_envs = int(self.ends[-1])
        self.units = np.repeat(units, [env.num_envs for env in envs])
        self.single_observation_space = envs[0].single_observation_space
        self.single_action_space = envs[0].single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode in every row; part k begins with ``seed`` + 1000 k."""
        first = seed if isinstance(seed, int) else None
        seeds = [None if first is None else first + 1000 * k for k in range(len(self.parts))]
        found = [env.reset(seed=one)[0] for env, one in zip(self.parts, seeds, strict=True)]
        return np.concatenate(found), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Send the request of every row to a replica."""
        pieces = np.split(np.asarray(actions), self.ends[:-1])
        found = [env.step(piece) for env, piece in zip(self.parts, pieces, strict=True)]
        observations, rewards, terminated, truncated = (np.concatenate([one[k] for one in found]) for k in range(4))
        further = [one[4] for one in found]
        infos: dict[str, Any] = {"elapsed_s": np.concatenate([one["elapsed_s"] for one in further])}
        ended = terminated | truncated
        if ended.any():
            infos |= {"final_obs": self._last_of(further), "_final_obs": ended}
        return observations, rewards / self.units, terminated, truncated, infos

    def _last_of(self, further: Sequence[dict[str, Any]]) -> np.ndarray:
        """The last observations of the rows whose episodes ended, from the infos of the parts."""
        final = np.full(self.num_envs, None, object)
        for env, end, info in zip(self.parts, self.ends, further, strict=True):
            if "final_obs" in info:
                final[end - env.num_envs : end] = info["final_obs"]
        return final
