"""PPO for decisions that take different amounts of time.

An iteration of an LLM server lasts 10 to 500 ms, so a reward is discounted by the seconds until it comes, not by the
number of decisions: step t has its own factor

    gamma_t = exp(-elapsed_t / discount_s)

and generalised advantage estimation (Schulman et al. 2016, eq. 16) becomes

    delta_t = r_t + gamma_t V(s_{t+1}) - V(s_t)
    A_t     = delta_t + gamma_t lambda A_{t+1}

as in a semi-Markov decision process. `lambda` stays a factor per decision. With equal steps this is SB3's estimate
(stable_baselines3/common/buffers.py) with gamma = exp(-step / discount_s).
"""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from engine.errors import InputError


class TimedRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer with a discount factor for each step: ``discounts`` is float32[steps, rows]."""

    discounts: np.ndarray

    def reset(self) -> None:
        """Forget the rollout; every discount is the constant `gamma` until it is set."""
        self.discounts = np.full((self.buffer_size, self.n_envs), self.gamma, np.float32)
        super().reset()

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """Advantages and returns of the rollout (the formulas of the module docstring).

        Args:
            last_values: value of the state after the last step, float32[rows, 1].
            dones: whether the last step ended an episode, bool[rows].
        """
        next_values = last_values.detach().cpu().numpy().reshape(-1)
        alive = 1.0 - np.asarray(dones, np.float32)
        advantage = np.zeros(self.n_envs, np.float32)
        for t in range(self.buffer_size - 1, -1, -1):
            carried = alive * self.discounts[t]
            delta = self.rewards[t] + carried * next_values - self.values[t]
            advantage = delta + carried * self.gae_lambda * advantage
            self.advantages[t] = advantage
            next_values = self.values[t]
            alive = 1.0 - self.episode_starts[t]
        self.returns = self.advantages + self.values


class TimedPPO(PPO):
    """SB3's PPO with discounting by elapsed seconds; everything but the collection of rollouts is SB3's.

    The innermost environment must have `elapsed_s` (float64[rows]) after each step, as `SB3VecEnv` has over an
    environment that reports it; where it is None, a step counts as `step_s` seconds.

    Args of the constructor: `discount_s`, seconds in which a reward loses 63 % of its value; `step_s`; the rest is
    PPO's but for `gamma`, which is exp(-step_s / discount_s).

    Raises:
        InputError: `discount_s` is not positive.
    """

    def __init__(self, *args: Any, discount_s: float = 30.0, step_s: float = 0.05, **kwargs: Any) -> None:
        if not discount_s > 0.0:
            raise InputError(f"discount_s: expected seconds > 0, got {discount_s!r}")
        self.discount_s = discount_s
        kwargs |= {"gamma": float(np.exp(-step_s / discount_s)), "rollout_buffer_class": TimedRolloutBuffer}
        super().__init__(*args, **kwargs)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Fill the buffer with `n_rollout_steps` steps of every row; False if the callback stopped it.

        The same as SB3's for discrete actions, without its loops over the rows: only rows whose episode ended are
        looked at one by one.
        """
        assert isinstance(rollout_buffer, TimedRolloutBuffer)
        assert self._last_obs is not None
        base = env.unwrapped
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        self.begin_rollout()
        dones = np.zeros(env.num_envs, np.bool_)
        for t in range(n_rollout_steps):
            with th.no_grad():
                observation = th.as_tensor(self._last_obs, device=self.device)
                actions_tensor, values, log_probs = self.policy(observation)
            actions = actions_tensor.cpu().numpy()
            new_obs, rewards, dones, infos = env.step(actions)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self.note_step(rollout_buffer, t, base)
            for row in np.flatnonzero(dones):
                rewards[row] += self._end_of_episode(infos[row], float(rollout_buffer.discounts[t, row]))
            if isinstance(self.action_space, spaces.Discrete):
                actions = actions.reshape(-1, 1)
            starts: Any = self._last_episode_starts
            rollout_buffer.add(self._last_obs, actions, rewards, starts, values, log_probs)  # type: ignore[arg-type]
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        self.settle()
        with th.no_grad():
            values = self.policy.predict_values(th.as_tensor(self._last_obs, device=self.device))
        self.estimate(rollout_buffer, values, dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def begin_rollout(self) -> None:
        """What comes between a checkpoint and the first step of a rollout."""

    def settle(self) -> None:
        """Wait for what still runs of the last update, and take it over."""

    def note_step(self, buffer: TimedRolloutBuffer, step: int, base: VecEnv) -> None:
        """Keep what else the estimate needs of a step: here its discount."""
        elapsed = getattr(base, "elapsed_s", None)
        if elapsed is not None:
            np.exp(elapsed / -self.discount_s, out=buffer.discounts[step], casting="same_kind")

    def estimate(self, buffer: TimedRolloutBuffer, last_values: th.Tensor, dones: np.ndarray) -> None:
        """Write advantages and returns into a full buffer."""
        buffer.compute_returns_and_advantage(last_values, dones)

    def more_state(self) -> dict[str, np.ndarray]:
        """What a checkpoint must keep beside networks, optimisers, normalisation and environment."""
        return {}

    def load_more_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `more_state` gave: arrays of the same names, types and shapes."""

    def optimizers(self) -> dict[str, th.optim.Optimizer]:
        """Every optimiser by name."""
        return {"optimizer": self.policy.optimizer}

    def train(self) -> None:
        """SB3's update, which must leave finite numbers.

        Raises:
            InputError: it did not; the last checkpoint is from before.
        """
        super().train()
        self.check_finite(self.num_timesteps)

    def check_finite(self, after: int) -> None:
        """Check what the update after so many decisions has left.

        Raises:
            InputError: a parameter of the networks is not finite.
        """
        for name, parameter in self.policy.named_parameters():
            if not bool(th.isfinite(parameter).all()):
                raise InputError(
                    f"train: expected finite networks, got {name} with others after {after} decisions: "
                    "try a smaller learning rate; the last checkpoint can be resumed"
                )

    def _end_of_episode(self, info: dict[str, Any], discount: float) -> float:
        """Log the episode; returns what a truncated one is still worth (its bootstrap, SB3 issue 633)."""
        if (episode := info.get("episode")) is not None and self.ep_info_buffer is not None:
            self.ep_info_buffer.append(episode)
        if not info.get("TimeLimit.truncated", False):
            return 0.0
        last = self.policy.obs_to_tensor(info["terminal_observation"])[0]
        with th.no_grad():
            return discount * float(self.policy.predict_values(last)[0])
