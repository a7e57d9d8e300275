"""`gymnasium.make` and `make_vec` take the same keywords, and both faces end episodes at the same step."""

from typing import Any

import gymnasium
import numpy as np
import pytest

import llmsched_env
from engine.demand.workload import Workload
from engine.errors import InputError
from llmsched_env import EnvConfig, LLMSchedEnv, LLMSchedVectorEnv

SHORT = Workload(rate=3.0, num_requests=6)


def episodes(env: Any, actions: np.ndarray, seed: int) -> list[Any]:
    """What a single environment gives for a sequence of actions, episodes one after the other."""
    seen: list[Any] = [env.reset(seed=seed)[0]]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((observation, reward, terminated, truncated, info["elapsed_s"], env.unwrapped.report()))
        if terminated or truncated:
            seen.append(env.reset()[0])
    return seen


def rows_of(env: Any, actions: np.ndarray, seed: int) -> list[list[Any]]:
    """The same from the rows of a vector environment; reports are those of final infos."""
    seen = [[observation] for observation in env.reset(seed=seed)[0]]
    for action in actions:
        observation, reward, terminated, truncated, infos = env.step(action)
        for e, track in enumerate(seen):
            ended = terminated[e] or truncated[e]
            last = infos["final_obs"][e] if ended else observation[e]
            report = infos["final_info"]["report"][e] if ended else None
            track.append((last, reward[e], terminated[e], truncated[e], infos["elapsed_s"][e], report))
            if ended:
                track.append(observation[e])
    return seen


@pytest.mark.parametrize("keywords", [{"max_episode_steps": 10}, {"max_steps": 7}, {"horizon_s": 1.0, "hold": 2}])
@pytest.mark.parametrize("raw", [False, True])
def test_rows_end_where_single_environments_end(keywords: dict[str, Any], raw: bool) -> None:
    rows, keywords = 3, {"workload": SHORT, "skip_decode_only": True, **keywords}
    vector: Any = gymnasium.make_vec("LLMSched-v0", num_envs=rows, **keywords)
    rng = np.random.default_rng(1)
    actions = rng.integers(0, vector.single_action_space.nvec, (120, rows, 3))
    tracks = rows_of(vector, actions, 5)
    for e in range(rows):
        single: Any = LLMSchedEnv(**keywords) if raw else gymnasium.make("LLMSched-v0", **keywords)
        alone = episodes(single, actions[:, e], 5 + e)
        assert len(alone) == len(tracks[e])
        flags = set()
        for one, row in zip(alone, tracks[e], strict=True):
            if not isinstance(one, tuple):
                np.testing.assert_array_equal(one, row)
                continue
            np.testing.assert_array_equal(one[0], row[0])
            assert one[1:5] == row[1:5]
            assert row[5] is None or row[5] == one[5]
            flags.add(one[2:4])
        assert (False, True) in flags


def test_the_last_possible_step_terminates_and_truncates_as_the_wrapper_says() -> None:
    steps, env = 0, LLMSchedEnv(workload=SHORT)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        terminated, steps = env.step((5, 0, 0))[2], steps + 1
    wrapped = gymnasium.make("LLMSched-v0", workload=SHORT, max_episode_steps=steps)
    vector = gymnasium.make_vec("LLMSched-v0", num_envs=1, workload=SHORT, max_episode_steps=steps)
    wrapped.reset(seed=0)
    vector.reset(seed=0)
    for _ in range(steps):
        single, row = wrapped.step(np.array([5, 0, 0])), vector.step(np.array([[5, 0, 0]]))
    assert (single[2:4], bool(row[2][0]), bool(row[3][0])) == ((True, True), True, True)


def test_every_field_is_a_keyword_of_both_faces() -> None:
    changes: dict[str, Any] = {
        "engine": {"num_blocks": 5000},
        "profile": "rtx6000ada-mistral-7b:speed=2",
        "workload": SHORT,
        "rates": [1.0, 2.0],
        "backlog": 3,
        "max_steps": 7,
        "horizon_s": 50.0,
        "skip_decode_only": True,
        "action": "slackfit",
        "prediction": "oracle",
        "reward": {"goodput": 1.0},
    }
    assert {*changes, "observation", "observation_sha256", "scenarios"} == set(EnvConfig.__dataclass_fields__)
    changes |= {"hold": 3, "ageing": 2.0, "close": 0.5}
    single = gymnasium.make("LLMSched-v0", **changes)
    vector = gymnasium.make_vec("LLMSched-v0", num_envs=2, **changes)
    assert isinstance(single.unwrapped, LLMSchedEnv)
    assert isinstance(vector.unwrapped, LLMSchedVectorEnv)
    assert single.unwrapped.config == vector.unwrapped.config
    np.testing.assert_array_equal(single.reset(seed=1)[0], vector.reset(seed=1)[0][0])


@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
def test_an_unknown_keyword_is_one_line_that_names_the_known_ones(make: Any) -> None:
    with pytest.raises(InputError, match=r"^max_step: unknown keyword, known: .*max_episode_steps.*max_steps") as error:
        make("LLMSched-v0", max_step=7)
    assert "\n" not in str(error.value)


def test_no_limit_is_written_as_gymnasium_does() -> None:
    for limit in (None, -1):
        vector: Any = gymnasium.make_vec("LLMSched-v0", num_envs=1, max_episode_steps=limit)
        assert vector.fleet.rules.limits[4] == 0.0


def test_an_executor_serves_one_environment() -> None:
    with pytest.raises(InputError, match=r"^executor: one executor serves one environment"):
        gymnasium.make_vec("LLMSched-v0", num_envs=2, executor="transformers:tiny")


def test_the_id_with_its_module_needs_no_import() -> None:
    assert gymnasium.make("llmsched_env:LLMSched-v0").spec is not None
    assert llmsched_env.PRESETS["LLMSched-v0"] == EnvConfig()
