"""Rewards and observations of users: the same on both faces, kept apart by the hash of their source, checked."""

import copy
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from engine import InputError
from llmsched_env import EnvConfig, LLMSchedEnv, LLMSchedVectorEnv, RewardWeights
from llmsched_env.own import Step
from llmsched_env.reward import REWARD_TERMS

PARTS = """
import numpy as np


def reward(step):
    return 2.0 * step.terms[:, 0] - step.elapsed_s * step.seen.row["num_waiting"]


def observe(seen):
    row = seen.row
    use = 1.0 - row["free_blocks"] / row["num_blocks"].clip(1)
    return np.stack([use, row["num_waiting"], row["num_running"], seen.observation[:, 3]], axis=1)
"""
WORKLOAD = {"num_requests": 12}


def module_reward(step: Step) -> np.ndarray:
    return -step.elapsed_s


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts.py").write_text(PARTS)
    return tmp_path


def config(**changes: Any) -> EnvConfig:
    return EnvConfig.from_dict({"workload": WORKLOAD, **changes})


def own() -> EnvConfig:
    return config(reward="parts.py:reward", observation="parts.py:observe")


def test_both_faces_get_the_same_bits(parts: Path) -> None:
    env, rows = LLMSchedEnv(own()), LLMSchedVectorEnv(3, own())
    assert env.observation_space.shape == rows.single_observation_space.shape == (4,)
    one, many = env.reset(seed=5)[0], rows.reset(seed=[4, 5, 6])[0]
    assert many.shape == (3, 4)
    for k in range(20_000):
        assert np.array_equal(one, many[1])
        action = np.array([4 + k % 4, 0, k % 4])
        one, reward, terminated, _, info = env.step(action)
        many, rewards, ended, _, infos = rows.step(np.tile(action, (3, 1)))
        assert reward == rewards[1]
        assert terminated == ended[1]
        if terminated:
            assert np.array_equal(one, infos["final_obs"][1])
            assert info["report"]["return"] == infos["final_info"]["report"][1]["return"]
            return
    raise AssertionError("the episode did not end")


def test_the_reward_is_what_the_function_makes_of_the_terms(parts: Path) -> None:
    default, mine = LLMSchedEnv(config()), LLMSchedEnv(config(reward="parts.py:reward"))
    default.reset(seed=1), mine.reset(seed=1)
    for _ in range(50):
        seen, reward, *_, info = default.step([5, 1, 1])
        also, own_reward, *_ = mine.step([5, 1, 1])
        waiting = mine.fleet.servers.visible.row[0, 0].num_waiting
        assert own_reward == 2.0 * info["reward_terms"][REWARD_TERMS[0]] - info["elapsed_s"] * waiting
        assert np.array_equal(seen, also)
        assert reward != own_reward or reward == 0.0


def test_copies_and_stored_states_go_on_with_them(parts: Path) -> None:
    env = LLMSchedEnv(own())
    env.reset(seed=2)
    for _ in range(10):
        env.step([5, 1, 1])
    state, twin = env.save_state(), copy.deepcopy(env)
    expected = env.step([4, 0, 0])
    again = twin.step([4, 0, 0])
    assert np.array_equal(expected[0], again[0])
    assert expected[1] == again[1]
    env.load_state(state)
    assert np.array_equal(env.step([4, 0, 0])[0], expected[0])


def test_keywords_and_functions_name_them(parts: Path) -> None:
    env = gymnasium.make("llmsched_env:LLMSched-v0", reward=module_reward, observation="parts.py:observe")
    assert env.unwrapped.config.reward.function.endswith("test_own_functions:module_reward")  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="expected a function at the top of a module"):
        config(reward=lambda step: step.reward)
    with pytest.raises(InputError, match=r"expected module:function, FILE\.py:function or a function, got"):
        config(reward=3)


def test_a_saved_configuration_notes_the_hash_and_refuses_an_edited_function(parts: Path) -> None:
    saved = json.loads(json.dumps(own().to_dict()))
    assert len(saved["observation_sha256"]) == len(saved["reward"]["function_sha256"]) == 16
    LLMSchedEnv(EnvConfig.from_dict(saved))
    (parts / "parts.py").write_text(PARTS.replace("2.0", "3.0"))
    with pytest.raises(InputError, match=r"parts\.py:\w+: expected the source with hash .*: it was edited"):
        LLMSchedEnv(EnvConfig.from_dict(saved))
    assert "observation" not in config().to_dict()
    assert EnvConfig.from_dict(config().to_dict()).reward == RewardWeights()


WRONG = {
    "raises": ("reward", "1 / 0", r"ZeroDivisionError: division by zero \(.*bad\.py, line 3\)"),
    "shape": ("reward", "return np.zeros(7)", r"expected numbers of shape \(1\), got float64 \(7,\)"),
    "scalar": ("reward", "return 0.0", r"expected numbers of shape \(1\)"),
    "nan": ("reward", "return np.full(1, np.nan)", "expected finite numbers, got nan in row 0"),
    "words": ("reward", "return np.array(['a'])", "expected numbers of shape"),
    "none": ("reward", "return None", "expected numbers of shape"),
    "writes": ("reward", "given.terms[:] = 0", r"ValueError: .*read-only.*bad\.py, line 3"),
    "flat": ("observation", "return given.row['num_waiting']", r"expected numbers of shape \(1, any\)"),
    "empty": ("observation", "return np.zeros((1, 0))", "expected 1 to 65536 numbers for each row, got 0"),
    "varies": ("observation", "return np.zeros((1, 1 + given.row['num_running'][0]))", r"expected numbers of shape"),
    "infinite": ("observation", "return 1 / given.row['num_running'][:, None] / 0", "expected finite numbers"),
}


def play(env_config: EnvConfig) -> None:
    env = LLMSchedEnv(env_config)
    env.reset(seed=0)
    for _ in range(60):
        env.step([5, 1, 1])


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_a_function_does_wrong_is_one_line(parts: Path, name: str) -> None:
    kind, code, message = WRONG[name]
    (parts / "bad.py").write_text(f"import numpy as np\ndef f(given):\n    {code}\n")
    with pytest.raises(InputError, match=message) as caught:
        play(config(**{kind: "bad.py:f"}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "nowhere:f"}, "nowhere: expected a module in the current folder"),
        ({"reward": "parts.py:gone"}, r"expected a name that parts\.py defines \(reward, observe\), got 'gone'"),
        ({"reward": "parts.py"}, "expected the name of a function, got several"),
        ({"observation": "slai"}, "expected module:function or FILE.py:function, got 'slai'"),
        ({"observation": "parts.py:observe", "action": "mixture"}, "expected none with the mixture action"),
    ],
)
def test_names_that_lead_nowhere_are_one_line(parts: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LLMSchedEnv(config(**changes))


def test_training_learns_from_them_and_what_is_learned_is_evaluated(parts: Path) -> None:
    pytest.importorskip("torch")
    from agents.cli import main
    from agents.learning.learned.load import load_policy

    command = ["train", "--total-timesteps", "128", "--n-envs", "2", "--n-steps", "32", "--batch-size", "32"]
    command += ["--eval-every", "64", "--eval-requests", "16", "--eval-traces", "1", "--run-dir", "run"]
    command += ["--no-progress", "--env.workload.num-requests", "16", "--env.reward.function", "parts.py:reward"]
    assert main([*command, "--env.observation", "parts.py:observe"]) == 0
    about = json.loads((parts / "run" / "final" / "policy.json").read_text())
    assert about["env"]["observation_sha256"]
    assert main(["simulate", "--policy", "run", "--num-requests", "10"]) == 0
    policy = load_policy("run/final")
    env = LLMSchedEnv(own())
    seen, _ = env.reset(seed=0)
    assert policy.choose(seen[None]).shape == (1, 3)
    (parts / "parts.py").write_text(PARTS + "\n# edited\n")
    with pytest.raises(InputError, match="it was edited"):
        load_policy("run/final")
    assert main(["train", "--resume", "--run-dir", "run", "--total-timesteps", "192", "--no-progress"]) == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise SystemExit(0)", r"bad.py:reward: SystemExit: 0 .*bad.py, line 2"),
        ("return -(step.elapsed_s + 1.0) * 1e300 * 1e300", "expected finite numbers, got -inf"),
    ],
)
def test_a_reward_that_leaves_or_overflows_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, body: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.py").write_text(f"def reward(step):\n    {body}\n")
    env = LLMSchedVectorEnv(2, EnvConfig(reward=RewardWeights(function="bad.py:reward")))
    env.reset(seed=0)
    with pytest.raises(InputError, match=message):
        env.step(env.action_space.sample())
    assert [w for w in recwarn if issubclass(w.category, RuntimeWarning)] == []
