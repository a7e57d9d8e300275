"""Environments whose episodes draw one of several worlds: the same as each world alone, row by row, bit for bit."""

import copy
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.device.memory import server_of
from engine.errors import InputError
from engine.scenarios.scenario import read_scenario
from llmsched_env import EnvConfig, LLMSchedEnv, LLMSchedVectorEnv, Slackfit

SCENARIOS = (
    read_scenario("poisson:rate=1.6"),
    read_scenario("poisson:rate=6,lengths=lognormal:6,1,4,0.5@h100-mistral-7b:mixed=2@max_num_seqs=32"),
    read_scenario(
        {
            "name": "three tiers",
            "workload": "gamma:load=0.8,cv=2",
            "profile": "rtx4090-llama-3.1-8b",
            "tiers": ["name=a,share=0.1,tbt=0.05,weight=3", "name=b,share=0.4,tbt=0.2", "name=c,tbt=1.0"],
        }
    ),
)
MIXED = EnvConfig(
    workload=Workload(num_requests=16), scenarios=SCENARIOS, skip_decode_only=True, action=Slackfit(hold=2)
)


def played(env: Any, config: EnvConfig, seed: int, scenario: Any, steps: int = 120) -> list[Any]:
    """Observations and rewards of a few episodes with a fixed stream of actions."""
    rng = np.random.default_rng(5)
    options = {} if scenario is None else {"options": {"scenario": scenario}}
    found: list[Any] = [env.reset(seed=seed, **options)[0]]
    for _ in range(steps):
        action = rng.integers(config.action.sizes)
        observation, reward, terminated, truncated, info = env.step(action)
        found += [observation, reward, terminated, info["elapsed_s"], info["reward_terms"]]
        if terminated or truncated:
            found.append(sorted(info["report"].items()))
            break
    return found


@pytest.mark.parametrize("k", range(len(SCENARIOS)))
def test_a_scenario_plays_as_the_environment_of_it_alone(k: int) -> None:
    alone = MIXED.worlds[k]
    mixed = played(LLMSchedEnv(MIXED), MIXED, 7, k, steps=2000)
    assert str(mixed) == str(played(LLMSchedEnv(alone), alone, 7, None, steps=2000))


def test_vector_rows_equal_single_environments() -> None:
    rows, steps = 6, 300
    vector = LLMSchedVectorEnv(rows, MIXED)
    singles = [LLMSchedEnv(MIXED) for _ in range(rows)]
    first, infos = vector.reset(seed=3)
    tracks = [single.reset(seed=3 + e) for e, single in enumerate(singles)]
    names = [one.name for one in SCENARIOS]
    assert [names[w] for w in infos["scenario"]] == [info["scenario"] for _, info in tracks]
    np.testing.assert_array_equal(first, [observation for observation, _ in tracks])
    rng, seen, ends = np.random.default_rng(0), set(infos["scenario"].tolist()), 0
    for _ in range(steps):
        actions = rng.integers(MIXED.action.sizes, size=(rows, 3))
        observations, rewards, terminated, _, infos = vector.step(actions)
        for e, single in enumerate(singles):
            observation, reward, ended, _, info = single.step(actions[e])
            assert (reward, ended, info["scenario"]) == (rewards[e], terminated[e], names[infos["scenario"][e]])
            if ended:
                assert str(infos["final_info"]["report"][e]) == str(info["report"])
                observation, _ = single.reset()
                ends += 1
            np.testing.assert_array_equal(observation, observations[e])
        seen |= set(infos["scenario"].tolist())
    assert ends > rows
    assert seen == {0, 1, 2}


def test_a_state_brings_its_scenario_along() -> None:
    vector, single = LLMSchedVectorEnv(3, MIXED), LLMSchedEnv(MIXED)
    vector.reset(seed=0, options={"scenario": [2, 0, 1]})
    for _ in range(4):
        vector.step(vector.action_space.sample())
    states = vector.save_state()
    single.load_state(states[2])
    assert single.scenario == SCENARIOS[1].name
    alone = LLMSchedEnv(MIXED.worlds[1])
    actions = [single.action_space.sample() for _ in range(3)]
    expected = [single.step(action)[1] for action in actions]
    vector.load_state(states[2], row=0)
    others = [vector.step(np.stack([action] * 3))[1] for action in actions]
    assert [row[0] for row in others] == [row[2] for row in others] == expected
    with pytest.raises(InputError, match="expected the layout of this environment"):
        alone.load_state(states[2])  # room for fewer tiers


def test_a_copy_goes_on_alike() -> None:
    env = LLMSchedVectorEnv(4, MIXED)
    env.reset(seed=1)
    env.step(env.action_space.sample())
    twin = copy.deepcopy(env)
    for _ in range(100):
        action = env.action_space.sample()
        np.testing.assert_array_equal(env.step(action)[0], twin.step(action)[0])


def test_a_trace_is_played_in_the_scenario_that_is_named() -> None:
    env = LLMSchedEnv(MIXED)
    requests = MIXED.worlds[2].workload.generate(0)
    _, info = env.reset(seed=0, options={"requests": requests, "scenario": "three tiers"})
    assert info["scenario"] == "three tiers"
    with pytest.raises(InputError, match="expected the scenario in which the trace is played"):
        env.reset(options={"requests": requests})
    with pytest.raises(InputError, match="in 2 tiers, got 16 in 3"):
        env.reset(options={"requests": requests, "scenario": 0})


@pytest.mark.parametrize("scenario", ["nothing", 3, -1, 1.0, True])
def test_a_scenario_that_is_not_there_is_one_line(scenario: Any) -> None:
    with pytest.raises(InputError, match=r"^options\['scenario'\]: expected a number 0\.\.2 or a name"):
        LLMSchedEnv(MIXED).reset(options={"scenario": scenario})
    with pytest.raises(InputError, match=r"^options\['scenario'\]\[1\]"):
        LLMSchedVectorEnv(2, MIXED).reset(options={"scenario": [0, scenario]})
    with pytest.raises(InputError, match="expected a list with one for each of 2 rows"):
        LLMSchedVectorEnv(2, MIXED).reset(options={"scenario": scenario})


def test_a_configuration_with_scenarios_is_saved_and_read() -> None:
    assert EnvConfig.from_dict(MIXED.to_dict()) == MIXED
    assert "scenarios" not in EnvConfig().to_dict()


def test_rates_and_executors_belong_to_one_world() -> None:
    with pytest.raises(InputError, match=r"^env\.rates: expected none beside scenarios"):
        replace(MIXED, rates=(1.0,))
    with pytest.raises(InputError, match=r"^executor: expected none beside scenarios"):
        LLMSchedEnv(MIXED, executor=load_profile("h100-mistral-7b"))


def test_a_server_has_the_memory_of_its_profile() -> None:
    h100 = server_of(load_profile("h100-mistral-7b"))
    assert EnvConfig(profile="h100-mistral-7b").engine == h100
    assert EnvConfig().engine == server_of(load_profile("rtx6000ada-mistral-7b"))
    assert gymnasium.make("LLMSched-v0", profile="h100-mistral-7b").unwrapped.config.engine == h100  # type: ignore[attr-defined]
    given = EnvConfig.from_dict({"profile": "h100-mistral-7b", "engine": {"max_num_seqs": 7}}).engine
    assert given == h100.replace(max_num_seqs=7)
    assert EnvConfig(engine=h100.replace(num_blocks=9000)).on("l40s-mistral-7b").engine.num_blocks == 9000
