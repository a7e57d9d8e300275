import math
from typing import Any

import gymnasium
import pytest

import llmsched_env  # noqa: F401  (registers the environments)
from engine.demand.workload import Workload
from llmsched_env import EnvConfig, LLMSchedEnv


def test_an_episode_says_at_which_rate_its_requests_came() -> None:
    workload = Workload(rate=4.0, num_requests=20, lengths="fixed:64,4")
    env = LLMSchedEnv(EnvConfig(workload=workload))
    env.reset(options={"requests": workload.generate(5)})
    ended, info = False, dict[str, Any]()
    while not ended:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated or truncated
    assert info["report"]["arrival_rate"] == pytest.approx(workload.generate(5).rate)


def test_requests_that_come_at_once_have_no_rate() -> None:
    env = gymnasium.make(
        "LLMSched-v0", config=EnvConfig(workload=Workload(arrivals="burst", num_requests=3)), max_steps=1
    )
    env.reset(seed=0)
    report = env.step(env.action_space.sample())[4]["report"]
    assert math.isnan(report["arrival_rate"])
