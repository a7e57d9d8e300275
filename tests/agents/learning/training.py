"""Small environments and configurations for the tests of training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from agents.learning.ppo.train_config import TrainConfig
from engine.demand.workload import Workload
from llmsched_env import EnvConfig

SMALL = """LLMSched-v0:
  {n_envs: 4, n_steps: 16, batch_size: 32, n_epochs: 1, eval_every: 0, progress: false,
   env_kwargs: {backlog: 0, workload: {num_requests: 5}}}"""
"""The same as a file of hyperparameters."""


class Echo(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """The observation shows, for each head, which choice is right; reward is the share of right heads.

    Steps take 0.01 to 0.1 s, episodes 10 steps. The best return is 10, random choices give about 4.2.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, rows: int) -> None:
        self.num_envs = rows
        self.single_observation_space = spaces.Box(-1.0, 1.0, (5,), np.float32)
        self.single_action_space = spaces.MultiDiscrete([2, 3])
        self.observation_space = spaces.Box(-1.0, 1.0, (rows, 5), np.float32)
        self.action_space = spaces.MultiDiscrete(np.tile([2, 3], (rows, 1)))
        self.right = np.zeros((rows, 2), np.int64)
        self.age = np.zeros(rows, np.int64)
        self.rng = np.random.default_rng(0)

    def _observe(self) -> np.ndarray:
        self.right = self.rng.integers(0, [2, 3], (self.num_envs, 2))
        return np.hstack([np.eye(2)[self.right[:, 0]], np.eye(3)[self.right[:, 1]]]).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.age[:] = 0
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        reward = (actions == self.right).mean(axis=1)
        self.age += 1
        ended = self.age == 10
        self.age[ended] = 0
        infos: dict[str, Any] = {"elapsed_s": self.rng.uniform(0.01, 0.1, self.num_envs)}
        last = self._observe()
        final = np.full(self.num_envs, None, object)
        for row in np.flatnonzero(ended):
            final[row] = last[row]
        infos |= {"final_obs": final, "_final_obs": ended}
        return last, reward, np.zeros(self.num_envs, np.bool_), ended, infos


def small(run_dir: Path, **changes: Any) -> TrainConfig:
    """Four rows, 64 decisions in a rollout, episodes of 5 requests: a run of a second."""
    config = TrainConfig(
        run_dir=run_dir,
        total_timesteps=256,
        n_envs=4,
        n_steps=16,
        batch_size=32,
        n_epochs=2,
        net_arch=(16,),
        checkpoint_every=128,
        eval_every=128,
        eval_traces=1,
        eval_requests=8,
        eval_baselines=("sarathi",),
        progress=False,
        env=EnvConfig(workload=Workload(rate=2.0, num_requests=5, lengths="fixed:300,3"), rates=(1.5, 2.5)),
    )
    return replace(config, **changes)
