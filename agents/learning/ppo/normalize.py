"""`TimedNormalize`: SB3's `VecNormalize` for steps that take different amounts of time."""

from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from engine.errors import InputError

_MOST = 1e30
"""Largest magnitude of a mean or a count in a stored state."""


class TimedNormalize(VecNormalize):
    """Running normalisation of observations and rewards, with SB3's formulas.

    Differences from `VecNormalize`: the return that scales the rewards is discounted by exp(-elapsed / discount_s), as
    the learner's is (`agents.learning.ppo.rollout`); the statistics come and go as plain arrays (`state`,
    `load_state`), so that no checkpoint needs unpickling; rows are not looped over.
    """

    def __init__(self, venv: VecEnv, discount_s: float, clip_obs: float = 10.0, clip_reward: float = 10.0) -> None:
        super().__init__(venv, clip_obs=clip_obs, clip_reward=clip_reward)
        self.discount_s = discount_s

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step, update the statistics (in training) and normalise."""
        obs, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(obs, np.ndarray)
        self.old_obs, self.old_reward = obs, rewards
        if self.training:
            self._observed.update(obs)
            self._update_reward(rewards)
        for row in np.flatnonzero(dones):
            if "terminal_observation" in infos[row]:
                infos[row]["terminal_observation"] = self.normalize_obs(infos[row]["terminal_observation"])
            self.returns[row] = 0.0
        return self.normalize_obs(obs), self.normalize_reward(rewards), dones, infos

    @property
    def _observed(self) -> RunningMeanStd:
        assert isinstance(self.obs_rms, RunningMeanStd)
        return self.obs_rms

    @property
    def scale(self) -> tuple[np.ndarray, np.ndarray]:
        """What observations are shifted and divided by: float64[observations] each."""
        return self._observed.mean.copy(), np.sqrt(self._observed.var + self.epsilon)

    def normalize_obs(self, obs: np.ndarray) -> np.ndarray:  # type: ignore[override]
        """Normalised float32 observations: clip((obs - mean) / sqrt(var + epsilon))."""
        return self._normalize_obs(obs, self._observed).astype(np.float32)

    def _update_reward(self, reward: np.ndarray) -> None:
        elapsed = getattr(self.venv.unwrapped, "elapsed_s", None)
        discount = self.gamma if elapsed is None else np.exp(elapsed / -self.discount_s)
        self.returns = self.returns * discount + reward
        self.ret_rms.update(self.returns)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that changes, as float64 arrays."""
        seen, paid = self._observed, self.ret_rms
        return {
            "obs_mean": seen.mean.copy(),
            "obs_var": seen.var.copy(),
            "obs_count": np.float64(seen.count).reshape(1),
            "return_mean": np.reshape(np.float64(paid.mean), 1),
            "return_var": np.reshape(np.float64(paid.var), 1),
            "return_count": np.float64(paid.count).reshape(1),
            "returns": self.returns.copy(),
        }

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from what `state` gave.

        Raises:
            InputError: it belongs to other observations or another number of rows.
        """
        now = self.state()
        for name, value in now.items():
            if name not in state or state[name].shape != value.shape:
                raise InputError(f"checkpoint: normalisation {name!r}: expected shape {value.shape}")
            low, high = (0.0, _MOST**2) if name.endswith("_var") else (-_MOST, _MOST)
            if not ((state[name] >= low) & (state[name] <= high)).all() or (
                name.endswith("_count") and state[name] <= 0.0
            ):
                raise InputError(f"checkpoint: normalisation {name!r}: expected numbers that statistics can have")
        seen, paid = self._observed, self.ret_rms
        seen.mean, seen.var = state["obs_mean"].copy(), state["obs_var"].copy()
        seen.count = float(state["obs_count"][0])
        paid.mean, paid.var = state["return_mean"][0], state["return_var"][0]
        paid.count = float(state["return_count"][0])
        self.returns = state["returns"].copy()
