"""`SB3VecEnv`: what SB3 sees of a Gymnasium vector environment."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.learning.ppo.vec_env import SB3VecEnv, row_info
from engine.demand.workload import Workload
from engine.errors import InputError
from llmsched_env import EnvConfig, LLMSchedVectorEnv


def cart_pole() -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CartPole-v1", max_episode_steps=17)


def sync(rows: int) -> SyncVectorEnv:
    return SyncVectorEnv([cart_pole] * rows, autoreset_mode=AutoresetMode.SAME_STEP)


def servers(rows: int = 3, **changes: Any) -> LLMSchedVectorEnv:
    workload = Workload(rate=2.0, num_requests=6)
    return LLMSchedVectorEnv(rows, EnvConfig(workload=workload, skip_decode_only=True, **changes))


def play(env: Any, steps: int, seed: int = 5) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]]:
    """Steps with random actions; infos are copied, since they may be reused."""
    rng = np.random.default_rng(seed)
    seen = []
    for _ in range(steps):
        sizes = getattr(env.action_space, "nvec", None)
        shape = (env.num_envs,) if sizes is None else (env.num_envs, len(sizes))
        obs, rewards, dones, infos = env.step(rng.integers(0, 2, shape))
        seen.append((obs, rewards, dones, [dict(info) for info in infos]))
    return seen


def test_sync_vector_env_gives_what_dummy_vec_env_gives() -> None:
    ours, theirs = SB3VecEnv(sync(3)), DummyVecEnv([cart_pole] * 3)
    for env in (ours, theirs):
        env.seed(11)
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    ends = truncations = 0
    for mine, sb3 in zip(play(ours, 120), play(theirs, 120), strict=True):
        for a, b in zip(mine[:3], sb3[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        for done, info, expected in zip(mine[2], mine[3], sb3[3], strict=True):
            assert info.get("TimeLimit.truncated", False) == expected.get("TimeLimit.truncated", False)
            assert ("terminal_observation" in info) == done
            if done:
                ends += 1
                truncations += info["TimeLimit.truncated"]
                np.testing.assert_array_equal(info["terminal_observation"], expected["terminal_observation"])
    assert 0 < truncations < ends


def test_episode_info_is_what_monitor_gives() -> None:
    ours, theirs = SB3VecEnv(sync(2)), DummyVecEnv([lambda: Monitor(cart_pole())] * 2)
    for env in (ours, theirs):
        env.seed(3)
        env.reset()
    episodes = 0
    for mine, sb3 in zip(play(ours, 60), play(theirs, 60), strict=True):
        for info, expected in zip(mine[3], sb3[3], strict=True):
            if "episode" in expected:
                episodes += 1
                assert info["episode"]["r"] == pytest.approx(expected["episode"]["r"])
                assert info["episode"]["l"] == expected["episode"]["l"]
                assert info["episode"]["t"] >= 0.0
    assert episodes > 3


def test_infos_are_empty_between_episode_ends_and_episodes_carry_the_report() -> None:
    env = SB3VecEnv(servers())
    env.seed(0)
    env.reset()
    ended = 0
    for _, _, dones, infos in play(env, 900):
        assert [bool(info) for info in infos] == dones.tolist()
        for info in (info for info in infos if info):
            ended += 1
            episode = info["episode"]
            assert episode["r"] == pytest.approx(info["report"]["return"], rel=1e-5)
            assert episode["l"] == info["report"]["decisions"]
            assert episode["completed"] == 6
            assert {"median_ttft_ms", "p99_ttft_ms"} <= set(episode)
    assert ended > 3


def test_rewards_and_elapsed_seconds_are_those_of_the_environment() -> None:
    env, plain = SB3VecEnv(servers()), servers()
    env.seed(4)
    first, _ = plain.reset(seed=4)
    np.testing.assert_array_equal(env.reset(), first)
    rng = np.random.default_rng(5)
    for obs, rewards, _, _ in play(env, 50):
        expected = plain.step(rng.integers(0, 2, (3, 3)))
        np.testing.assert_array_equal(obs, expected[0])
        np.testing.assert_array_equal(rewards, expected[1].astype(np.float32))
    assert env.elapsed_s is not None
    np.testing.assert_array_equal(env.elapsed_s, expected[4]["elapsed_s"])


def test_truncated_rows_say_so() -> None:
    env = SB3VecEnv(servers(max_steps=5))
    env.reset()
    ends = [info for *_, infos in play(env, 5) for info in infos if info]
    assert [info["TimeLimit.truncated"] for info in ends] == [True] * 3


def test_seed_repeats_and_is_used_once() -> None:
    env = SB3VecEnv(servers())
    assert env.seed(7) == [7, 8, 9]
    first = env.reset()
    env.seed(7)
    np.testing.assert_array_equal(env.reset(), first)
    assert not np.array_equal(env.reset(), first)


def test_other_autoreset_modes_are_refused() -> None:
    with pytest.raises(InputError, match="expected autoreset mode SameStep, got"):
        SB3VecEnv(SyncVectorEnv([cart_pole]))


def test_attributes_and_methods_of_single_environments_honour_indices() -> None:
    env = SB3VecEnv(sync(3))
    env.set_attr("label", "second", indices=1)
    assert env.get_attr("label", indices=[1]) == ["second"]
    assert env.env_method("get_wrapper_attr", "label", indices=[1]) == ["second"]
    with pytest.raises(AttributeError):
        env.get_attr("label", indices=0)
    assert env.env_is_wrapped(TimeLimit, indices=[0, 2]) == [True, True]
    assert env.env_is_wrapped(Monitor) == [False] * 3
    assert not env.has_attr("no_such_attribute")


class Masked(LLMSchedVectorEnv):
    """Two ways to give masks: for all rows at once, or for the rows that are asked for."""

    def action_masks(self) -> np.ndarray:
        return np.eye(self.num_envs, dtype=bool)

    def masks_of(self, indices: list[int]) -> np.ndarray:
        return np.eye(self.num_envs, dtype=bool)[indices]

    def one_number(self) -> int:
        return 1


def test_methods_of_native_vector_environments_honour_indices() -> None:
    env = SB3VecEnv(Masked(3, EnvConfig()))
    assert len(env.env_method("action_masks")) == 3
    assert env.env_method("masks_of", indices=[2])[0].tolist() == [False, False, True]
    with pytest.raises(InputError, match="expected all rows"):
        env.env_method("action_masks", indices=[0])
    with pytest.raises(InputError, match="expected one result for each of 3 rows"):
        env.env_method("one_number")
    with pytest.raises(InputError, match="expected all rows"):
        env.set_attr("label", 1, indices=0)
    env.set_attr("label", 1)
    assert env.get_attr("label", indices=[0, 2]) == [1, 1]
    assert env.env_is_wrapped(TimeLimit, indices=1) == [False]
    with pytest.raises(InputError, match="expected rows 0 to 2, got 3"):
        env.get_attr("label", indices=3)


def test_different_options_for_rows_are_refused() -> None:
    env = SB3VecEnv(servers())
    env.set_options([{}, {"requests": []}, {}])
    with pytest.raises(InputError, match="same options for every row"):
        env.reset()


def test_row_info_skips_masked_entries() -> None:
    infos = {
        "a": np.array([1, 2]),
        "_a": np.array([True, False]),
        "deep": {"b": np.array([3, 4]), "_b": np.array([False, True])},
    }
    assert row_info(infos, 0) == {"a": 1, "deep": {}}
    assert row_info(infos, 1) == {"deep": {"b": 4}}


def test_states_and_indices_that_do_not_fit_are_refused() -> None:
    env = SB3VecEnv(servers())
    env.reset()
    wrong: list[Any] = [None, {}, {"returns": np.zeros(1), "lengths": np.zeros(1)}, {"returns": 0.0, "lengths": 0}]
    for state in wrong:
        with pytest.raises(InputError, match="state: expected returns and lengths of 3 rows"):
            env.load_state(state)
    indices: list[Any] = ["a", 1.5, [None]]
    for one in indices:
        with pytest.raises(InputError, match="indices"):
            env.get_attr("config", indices=one)
    env.load_state(env.state())


def test_illegal_actions_and_seeds_are_refused() -> None:
    env = SB3VecEnv(servers())
    with pytest.raises(InputError, match="before calling"):
        env.step(np.zeros((3, 3), np.int64))
    env.reset()
    for action in (np.zeros((3, 3)), np.full((3, 3), 10**9), np.zeros(3, np.int64), np.full((3, 3), -1)):
        with pytest.raises(InputError, match="action"):
            env.step(action)
    env.seed(-5)
    with pytest.raises(InputError, match="seed"):
        env.reset()
