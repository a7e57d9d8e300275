"""Speed of training, beside the same learner on an environment of the same spaces that costs nothing."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import torch as th
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.bench.timing import alternate
from agents.learning.ppo.queues.build import build_queue_model
from agents.learning.ppo.queues.groups import GroupedServers
from agents.learning.ppo.rollout import TimedPPO
from agents.learning.ppo.train import build_model
from agents.learning.ppo.train_config import TrainConfig, queue_recipe
from agents.learning.ppo.vec_env import SB3VecEnv
from llmsched_env import EnvConfig
from llmsched_env.fleet import observation_space

NULL_ID = "LLMSchedNull-v0"


class NullVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """The spaces of `LLMSchedVectorEnv`, no server: every step hands back the same arrays; no episode ends."""

    def __init__(self, num_envs: int = 1, config: EnvConfig | None = None) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
        self.num_envs = num_envs
        self.render_mode = None
        self.single_observation_space = observation_space()
        self.single_action_space = (config or EnvConfig()).action.space()
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        shape = (num_envs, *self.single_observation_space.shape)
        self._observation = np.random.default_rng(0).random(shape, np.float32)
        self._zeros, self._never = np.zeros(num_envs), np.zeros(num_envs, np.bool_)
        self._infos = {"elapsed_s": np.full(num_envs, 0.05)}

    def reset(self, *, seed: object = None, options: object = None) -> tuple[np.ndarray, dict[str, Any]]:
        """The observations and an empty info."""
        return self._observation, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """The same observations, no reward, 50 ms."""
        return self._observation, self._zeros, self._never, self._never, self._infos


class NullGroups(GroupedServers):
    """`GroupedServers` whose servers stand still: its spaces, and the same arrays after every step."""

    def new_round(self, resync: bool) -> np.ndarray:
        """The observations."""
        return self.observed

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """The same observations, no reward, half a second."""
        rewards, never = np.zeros(self.num_envs), np.zeros(self.num_envs, np.bool_)
        none = np.zeros_like(self.count_tiers())
        infos = {"reward": rewards, "elapsed_s": rewards + 0.5, "reward_terms": self.fleet.outcome.terms}
        return self.observed, rewards, never, never, infos | {"late_gaps": none[0], "finished": none[1]}


class _Silent(BaseCallback):
    def _on_step(self) -> bool:
        return True


def _null_model(config: TrainConfig) -> BaseAlgorithm:
    gymnasium.register(NULL_ID, vector_entry_point="agents.bench.ppo:NullVectorEnv", entry_point="none:none")
    return build_model(replace(config, env_id=NULL_ID))


def _plain_model(config: TrainConfig) -> BaseAlgorithm:
    """SB3 as it is, on the environment that costs nothing."""
    envs = VecNormalize(SB3VecEnv(NullVectorEnv(config.n_envs, config.env)))
    settings = {k: getattr(config, k) for k in ("n_steps", "batch_size", "n_epochs", "gae_lambda", "clip_range")}
    return PPO("MlpPolicy", envs, policy_kwargs={"net_arch": list(config.net_arch)}, device="cpu", **settings)


def _fps(model: Any, rollouts: int) -> Callable[[], float]:
    """Decisions per second over whole iterations of PPO: collect, then update.

    One that is not timed comes before: what an update leaves to other threads is then under way at both ends.
    """
    steps = rollouts * model.n_steps * model.n_envs
    callback = _Silent()
    env: VecEnv = model.get_env()

    def iterate() -> None:
        model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
        model.train()

    def once() -> float:
        iterate()
        start = time.perf_counter()
        for _ in range(rollouts):
            iterate()
        seconds = time.perf_counter() - start
        if isinstance(model, TimedPPO):
            model.settle()
        return steps / seconds

    model._setup_learn(steps, callback)
    callback.init_callback(model)
    return once


def fps(rounds: int, rollouts: int) -> dict[str, Any]:
    """Training speed with the shipped hyperparameters, rounds in turn.

    Returns:
        ``ppo_fps`` (ours), ``ppo_null_env_fps`` (the same learner, null environment), ``ppo_plain_sb3_null_env_fps``
        (SB3's PPO and VecNormalize, null environment), in decisions per second, and ``ppo_to_null_env``; ``queue_fps``,
        ``queue_null_env_fps`` and ``queue_to_null_env``, the same of the trainer for queues with its recipe, and the
        same again as ``queue_two_threads...``, with `row_threads` of both learners at 2; all else has one thread.
    """
    th.set_num_threads(1)
    th.distributions.Distribution.set_default_validate_args(False)
    config, queue = TrainConfig.from_yaml(), TrainConfig.from_yaml(queue_recipe())
    queue = replace(queue, queue=replace(queue.queue, warm_up=0))
    two = replace(queue, row_threads=2)
    models: dict[str, Any] = {
        "ppo_fps": build_model(config),
        "ppo_null_env_fps": _null_model(config),
        "ppo_plain_sb3_null_env_fps": _plain_model(config),
        "queue_fps": build_model(queue),
        "queue_null_env_fps": build_queue_model(queue, queue.learning_rate, NullGroups),
        "queue_two_threads_fps": build_queue_model(two, two.learning_rate),
        "queue_two_threads_null_env_fps": build_queue_model(two, two.learning_rate, NullGroups),
    }
    rates = {name: _fps(model, rollouts) for name, model in models.items()}
    alternate(1, rates)
    found = alternate(rounds, rates)
    kinds = ("ppo", "queue", "queue_two_threads")
    return found | {f"{name}_to_null_env": found[f"{name}_fps"] / found[f"{name}_null_env_fps"] for name in kinds}
