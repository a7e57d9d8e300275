"""With an executor it is the same environment: the profile as executor changes nothing, a model gives real tokens."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.server.state import Server
from llmsched_env import EnvConfig
from llmsched_env.live import Live

SMALL = EnvConfig(workload=Workload(rate=2.0, num_requests=40, lengths="lognormal:5,1,3,1,1500"))


def make(**changes: Any) -> Any:
    return gymnasium.make("LLMSched-v0", config=SMALL, **changes)


@pytest.mark.parametrize("action", ["allocation", "mixture"])
@pytest.mark.parametrize("skip", [False, True])
def test_with_the_profile_as_executor_nothing_changes(action: str, skip: bool) -> None:
    engine = EngineConfig(num_blocks=150, decision_s=0.001, decision_per_request_s=1e-5)
    changes = {"action": action, "skip_decode_only": skip, "engine": engine}
    compiled, live = make(**changes), make(**changes, executor=load_profile(SMALL.profile))
    assert np.array_equal(compiled.reset(seed=3)[0], live.reset(seed=3)[0])
    compiled.action_space.seed(0)
    ended = False
    while not ended:
        choice = compiled.action_space.sample()
        expected, got = compiled.step(choice), live.step(choice)
        assert np.array_equal(expected[0], got[0])
        assert expected[1:4] == got[1:4]
        assert got[4].pop("fallbacks") == 0
        assert expected[4] == got[4]
        ended = expected[2] or expected[3]


@pytest.mark.parametrize("action", ["allocation", "mixture"])
def test_actions_outside_the_space_become_a_batch_of_sarathi(action: str) -> None:
    env = make(action=action, executor=load_profile(SMALL.profile)).unwrapped
    env.reset(seed=0)
    bad: list[Any] = [99, -1, float("nan"), 0.5] if action == "mixture" else [(0, 0, 9), (np.inf, 0, 0), (1, 1), -1]
    for count, choice in enumerate(bad, 1):
        info = env.step(choice)[4]
        assert info["fallbacks"] == count
        assert info["elapsed_s"] > 0.0
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[4]["fallbacks"] == 0


class _Clock:
    """A device whose batches take no time at all."""

    real_time = True

    def start(self, requests: Requests) -> None:
        """Nothing."""

    def seconds(self, server: Server) -> float:
        """No time."""
        return 0.0


def test_what_the_agent_takes_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr("llmsched_env.live.time.perf_counter", lambda: now)
    env = make(executor=_Clock())
    env.reset(seed=0)
    now += 0.25
    assert env.step((5, 0, 0))[4]["elapsed_s"] == pytest.approx(0.25)
    now += 0.5
    assert env.step((5, 0, 0))[4]["elapsed_s"] == pytest.approx(0.5)


def test_a_real_model_serves_an_episode() -> None:
    workload = Workload(rate=50.0, num_requests=6, lengths="lognormal:3,0.5,2,0.5,60")
    config = EnvConfig(workload=workload, engine=EngineConfig(num_blocks=100), skip_decode_only=True)
    env: Any = gymnasium.make("LLMSched-v0", config=config, executor="transformers:tiny")
    env.reset(seed=0)
    ended = False
    while not ended:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated or truncated
    live: Live = env.unwrapped.live
    executor: Any = live.executor.executor
    assert info["report"]["completed"] == 6
    assert all((executor.tokens(i) >= 0).all() for i in range(6))


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(InputError, match="expected transformers"):
        make(executor="vllm")
