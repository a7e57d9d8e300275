"""The environments keep Gymnasium's and SB3's contracts, for every registered id, with warnings as errors."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import llmsched_env
from engine.errors import InputError
from llmsched_env import PRESETS, EnvConfig, LLMSchedEnv, LLMSchedVectorEnv, Mixture
from llmsched_env.observation import OBSERVATION_NAMES, OBSERVATION_SIZE


@pytest.mark.parametrize("name", PRESETS)
def test_gymnasium_checker_is_clean(name: Any) -> None:
    check_env(gymnasium.make(name, disable_env_checker=True).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", PRESETS)
def test_sb3_checker_is_clean(name: Any) -> None:
    sb3_check_env(gymnasium.make(name, disable_env_checker=True).unwrapped)


@pytest.mark.parametrize("name", PRESETS)
def test_both_faces_are_registered_on_one_id(name: Any) -> None:
    scalar = gymnasium.make(name)
    vector = gymnasium.make_vec(name, num_envs=3, vectorization_mode="vector_entry_point")
    assert isinstance(scalar.unwrapped, LLMSchedEnv)
    assert isinstance(vector.unwrapped, LLMSchedVectorEnv)
    assert vector.single_observation_space == scalar.observation_space
    assert vector.single_action_space == scalar.action_space
    assert vector.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP


def test_observation_entries_have_distinct_names() -> None:
    assert len(set(OBSERVATION_NAMES)) == OBSERVATION_SIZE


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_rendering_shows_the_present_state(mode: Any) -> None:
    env = gymnasium.make("LLMSched-v0", render_mode=mode)
    env.reset(seed=1)
    before: Any = env.render()
    for _ in range(60):
        env.step(env.action_space.sample())
    after: Any = env.render()
    if mode == "ansi":
        assert "waiting" in after
        assert after != before
    else:
        assert after.dtype == np.uint8
        assert after.shape[2] == 3
        assert (after != before).any()


def test_keywords_replace_fields_of_the_preset() -> None:
    env = gymnasium.make("LLMSched-v0", max_steps=5)
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(5)]
    assert [truncated for _, truncated in ends] == [False] * 4 + [True]
    assert not any(terminated for terminated, _ in ends)


@pytest.mark.parametrize(
    "changes",
    [
        {"no_such_field": 1},
        {"action": "magic"},
        {"rates": (0.0,)},
        {"max_steps": -1},
        {"backlog": 1_000_000},
        {"profile": "no-such-card"},
        {"action": "mixture", "arms": ("no-such-policy",)},
        {"action": "mixture", "arms": ("ltr",)},
        {"prediction": "no-such-channel"},
        {"prediction": "refined"},
        {"reward": {"ttft": float("nan")}},
        {"reward": {"fun": 1.0}},
    ],
)
def test_bad_options_are_one_clear_line(changes: Any) -> None:
    with pytest.raises(InputError) as error:
        LLMSchedEnv(**changes)
    assert "\n" not in str(error.value)


def test_config_survives_a_round_trip() -> None:
    config = EnvConfig(rates=(1.0, 2.0), action=Mixture(), backlog=3)
    assert EnvConfig.from_dict(config.to_dict()) == config


def test_import_registers_nothing_twice() -> None:
    llmsched_env.register_envs()
    assert gymnasium.spec("LLMSched-v0").vector_entry_point is not None
