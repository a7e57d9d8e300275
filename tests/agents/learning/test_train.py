"""Training: it learns, repeats, resumes exactly, discounts by time, and refuses bad input in one line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from safetensors.numpy import load
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

import agents.cli
from agents.cli import _parse
from agents.learning.learned.load import load_policy
from agents.learning.learned.policy import LearnedPolicy
from agents.learning.ppo.checkpoint import checkpoints
from agents.learning.ppo.normalize import TimedNormalize
from agents.learning.ppo.rollout import TimedPPO, TimedRolloutBuffer
from agents.learning.ppo.snapshot import restore, snapshot
from agents.learning.ppo.train import CHECKPOINTS, train
from agents.learning.ppo.train_config import TrainConfig, queue_recipe
from agents.learning.ppo.vec_env import SB3VecEnv
from agents.work.files import MARK
from engine.config import EngineConfig
from engine.errors import InputError
from engine.scenarios.suite import load_suite
from llmsched_env import LLMSchedVectorEnv, Mixture
from llmsched_env.config import EnvConfig
from tests.agents.learning.training import Echo, small


class StopAfter(BaseCallback):
    """Presses Ctrl-C after some steps of the rows."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        if self.n_calls == self.steps:
            raise KeyboardInterrupt
        return True


def last_checkpoint(folder: Path) -> dict[str, Any]:
    """Arrays by name, and the JSON part under "about"."""
    data = checkpoints(folder / CHECKPOINTS)[-1].read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {**load(data), "about": json.loads(header["__metadata__"]["about"])}


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal to the last bit, all the way down."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert sorted(a) == sorted(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{k}")
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), where
    else:
        assert a == b or (a != a and b != b), where  # nan: a number that does not exist


def learner_state(folder: Path) -> dict[str, Any]:
    """A run's last checkpoint without the wall-clock times of its episodes."""
    data = last_checkpoint(folder)
    for episode in data["about"]["episodes"]:
        del episode["t"]
    return data


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


def test_ppo_learns_to_echo() -> None:
    env = TimedNormalize(SB3VecEnv(Echo(16)), discount_s=0.05)
    model = TimedPPO(
        "MlpPolicy",
        env,
        discount_s=0.05,
        n_steps=32,
        batch_size=128,
        learning_rate=3e-3,
        policy_kwargs={"net_arch": [16]},
        seed=1,
        device="cpu",
    )
    model.learn(16_000)
    assert model.ep_info_buffer is not None
    returns = [episode["r"] for episode in model.ep_info_buffer]
    assert np.mean(returns) > 9.0


def test_same_seed_trains_the_same_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        train(small(tmp_path / name, seed=seed, eval_every=0))
    assert_same(learner_state(tmp_path / "a"), learner_state(tmp_path / "b"))
    a, c = (last_checkpoint(tmp_path / name) for name in "ac")
    assert not np.array_equal(a["policy.action_net.weight"], c["policy.action_net.weight"])


def test_watching_does_not_change_learning(tmp_path: Path) -> None:
    train(small(tmp_path / "watched", eval_every=64))
    train(small(tmp_path / "alone", eval_every=0))
    watched, alone = (learner_state(tmp_path / name) for name in ("watched", "alone"))
    for data in (watched, alone):
        del data["about"]["run"], data["about"]["config_hash"]
    assert_same(watched, alone)


def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    train(small(tmp_path / "whole", total_timesteps=1280))
    train(small(tmp_path / "parts", total_timesteps=640))
    train(small(tmp_path / "parts", total_timesteps=1280, resume=True))
    whole = learner_state(tmp_path / "whole")
    assert len(whole["about"]["episodes"]) > 5, "no episode ended: the test would show little"
    assert_same(whole, learner_state(tmp_path / "parts"))


@pytest.mark.parametrize("normalize", [True, False])
def test_interrupted_training_goes_on_exactly(tmp_path: Path, normalize: bool) -> None:
    changes = {"schedule": "linear", "normalize": normalize, "total_timesteps": 384}
    train(small(tmp_path / "whole", **changes))
    with pytest.raises(KeyboardInterrupt):
        train(small(tmp_path / "parts", **changes), StopAfter(16 * 4 + 5))
    kept = checkpoints(tmp_path / "parts" / CHECKPOINTS)
    assert [path.name for path in kept] == [f"step-{n:012d}.safetensors" for n in (128, 256)]
    assert isinstance(load_policy(tmp_path / "parts"), LearnedPolicy)
    train(small(tmp_path / "parts", **changes, resume=True))
    assert_same(learner_state(tmp_path / "whole"), learner_state(tmp_path / "parts"))


def test_no_half_written_files_stay_behind(tmp_path: Path) -> None:
    folder = train(small(tmp_path / "run", keep_checkpoints=1))
    assert len(checkpoints(folder / CHECKPOINTS)) == 1
    assert [path.name for path in folder.rglob(".*")] == [MARK]
    assert (folder / "best" / "policy.json").is_file()
    assert (folder / "final" / "weights.safetensors").is_file()


def test_advantages_follow_the_formula() -> None:
    """A_t = delta_t + gamma_t lambda A_{t+1}, cut where an episode starts, worked out backwards in plain Python."""
    rng = np.random.default_rng(0)
    steps, rows, lam = 6, 2, 0.9
    box = spaces.Box(-1, 1, (1,))
    buffer = TimedRolloutBuffer(steps, box, spaces.Discrete(2), "cpu", gae_lambda=lam, gamma=0.99, n_envs=rows)
    buffer.rewards[:] = rng.normal(size=(steps, rows))
    buffer.values[:] = rng.normal(size=(steps, rows))
    buffer.discounts[:] = np.exp(-rng.uniform(0.01, 2.0, (steps, rows)))
    buffer.episode_starts[3, 0] = buffer.episode_starts[5, 1] = 1.0
    last, dones = rng.normal(size=rows), np.array([False, True])
    buffer.compute_returns_and_advantage(th.tensor(last).reshape(-1, 1), dones)
    for row in range(rows):
        carried = 0.0
        for t in range(steps - 1, -1, -1):
            ended = dones[row] if t == steps - 1 else buffer.episode_starts[t + 1, row]
            following = last[row] if t == steps - 1 else buffer.values[t + 1, row]
            gamma = 0.0 if ended else buffer.discounts[t, row]
            carried = buffer.rewards[t, row] + gamma * following - buffer.values[t, row] + gamma * lam * carried
            assert buffer.advantages[t, row] == pytest.approx(carried, rel=1e-4, abs=1e-5)
            assert buffer.returns[t, row] == pytest.approx(carried + buffer.values[t, row], rel=1e-4, abs=1e-5)


def test_equal_steps_give_the_advantages_of_sb3() -> None:
    rng = np.random.default_rng(1)
    box, settings = spaces.Box(-1, 1, (1,)), {"gae_lambda": 0.95, "gamma": 0.98, "n_envs": 3}
    ours = TimedRolloutBuffer(8, box, spaces.Discrete(2), "cpu", **settings)  # type: ignore[arg-type]
    theirs = RolloutBuffer(8, box, spaces.Discrete(2), "cpu", **settings)  # type: ignore[arg-type]
    for name in ("rewards", "values", "episode_starts"):
        numbers = rng.normal(size=(8, 3)) if name != "episode_starts" else rng.random((8, 3)) < 0.2
        getattr(ours, name)[:] = getattr(theirs, name)[:] = numbers
    last, dones = th.tensor(rng.normal(size=(3, 1)), dtype=th.float32), np.array([True, False, False])
    for buffer in (ours, theirs):
        buffer.compute_returns_and_advantage(last, dones)
    np.testing.assert_allclose(ours.advantages, theirs.advantages, rtol=1e-5, atol=1e-6)


def test_discounts_are_those_of_the_elapsed_seconds() -> None:
    envs = Echo(4)
    model = TimedPPO("MlpPolicy", SB3VecEnv(envs), discount_s=2.0, n_steps=3, batch_size=4, device="cpu", seed=0)
    elapsed: list[np.ndarray] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            elapsed.append(model.get_env().unwrapped.elapsed_s.copy())  # type: ignore[union-attr]
            return True

    model.learn(12, Watch())
    buffer = model.rollout_buffer
    assert isinstance(buffer, TimedRolloutBuffer)
    np.testing.assert_allclose(buffer.discounts, np.exp(np.array(elapsed) / -2.0), rtol=1e-6)


def test_normalisation_has_the_formulas_of_vec_normalize() -> None:
    class Even(Echo):
        def step(self, actions: np.ndarray) -> Any:
            *rest, infos = super().step(actions)
            return *rest, infos | {"elapsed_s": np.full(self.num_envs, 0.05)}

    ours = TimedNormalize(SB3VecEnv(Even(5)), discount_s=1.0)
    theirs = VecNormalize(SB3VecEnv(Even(5)), gamma=float(np.exp(-0.05)))
    rng = np.random.default_rng(2)
    for env in (ours, theirs):
        env.seed(0)
    np.testing.assert_array_equal(np.asarray(ours.reset()), np.asarray(theirs.reset()))
    for _ in range(35):
        actions = rng.integers(0, 2, (5, 2))
        a, b = ours.step(actions), theirs.step(actions)
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_allclose(a[1], b[1], rtol=1e-6)
        for x, y in zip(a[3], b[3], strict=True):
            assert ("terminal_observation" in x) == ("terminal_observation" in y)
            if "terminal_observation" in x:
                np.testing.assert_array_equal(x["terminal_observation"], y["terminal_observation"])


def test_restored_environment_goes_on_exactly(tmp_path: Path) -> None:
    config = small(tmp_path).env
    first, second = LLMSchedVectorEnv(3, config), LLMSchedVectorEnv(3, config)
    first.reset(seed=1)
    second.reset(seed=99)
    actions = np.random.default_rng(0).integers(0, 4, (60, 3, 3))
    for action in actions[:20]:
        first.step(action)
    restore(second, snapshot(first))
    episodes = 0
    for action in actions[20:]:
        a, b = first.step(action), second.step(action)
        for x, y in zip(a[:4], b[:4], strict=True):
            np.testing.assert_array_equal(x, y)
        episodes += int((a[2] | a[3]).sum())
    assert episodes > 0


def test_snapshot_of_another_environment_is_refused(tmp_path: Path) -> None:
    config = small(tmp_path).env
    envs = [LLMSchedVectorEnv(rows, config) for rows in (2, 3)]
    for env in envs:
        env.reset(seed=0)
    with pytest.raises(InputError, match="checkpoint"):
        restore(envs[1], snapshot(envs[0]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small(tmp_path_factory.mktemp("runs") / "run", total_timesteps=128))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "already holds a run; --resume continues it"),
        ({"resume": True, "learning_rate": 1.0}, "resume: learning_rate: expected 0.0003 as in"),
        ({"resume": True, "n_envs": 8, "n_steps": 8}, "resume: n_envs: expected 4 as in"),
    ],
)
def test_a_folder_with_another_run_is_refused(run: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(small(run, **changes))


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a run with a checkpoint, found none"):
        train(small(tmp_path / "none", resume=True))


def test_shipped_hyperparameters_train_on_their_environment() -> None:
    config = TrainConfig.from_yaml("LLMSched-v0")
    assert config.env_id == "LLMSched-v0"
    assert (config.n_envs, config.schedule, config.env.rates[0]) == (256, "linear", 1.4)
    assert TrainConfig.from_yaml("LLMSchedMixture-v0").env.action == Mixture()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("LLMSched-v0: {n_step: 3}", "unknown key 'n_step', known: "),
        ("LLMSched-v0: {env_kwargs: {rate: 3}}", "env: unknown key 'rate'"),
        ("LLMSched-v0: {env_kwargs: {workload: {rat: 3}}}", "unknown key 'rat'"),
        ("LLMSched-v0: {policy: CnnPolicy}", "policy: expected MlpPolicy, got 'CnnPolicy'"),
        ("LLMSched-v0: {policy_kwargs: {net: [3]}}", "policy_kwargs: expected net_arch and activation_fn"),
        ("LLMSched-v0: {learning_rate: lin_fast}", "learning_rate: expected lin_<number>, got 'lin_fast'"),
        ("LLMSched-v0: {learning_rate: -1.0}", "learning_rate: expected a number > 0, got -1.0"),
        ("LLMSched-v0: {discount_s: .nan}", "expected finite numbers, got '.nan'"),
        ("LLMSched-v0: {n_envs: 0}", "n_envs: expected a whole number >= 1, got 0"),
        ("LLMSched-v0: {batch_size: 1000}", "batch_size: expected a divisor"),
        ("Other-v0: {}", "expected an environment id among"),
        ("[1, 2]", "expected one block, named after an environment id"),
        ("a: b: c", "expected YAML"),
    ],
)
def test_bad_hyperparameter_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        TrainConfig.from_yaml(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_command_trains_with_flags_over_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """LLMSched-v0:
  {n_envs: 4, n_steps: 16, batch_size: 32, n_epochs: 1, eval_requests: 5, eval_traces: 1, eval_baselines: [],
   progress: false, env_kwargs: {backlog: 0, workload: {num_requests: 5}}}"""
    (tmp_path / "small.yml").write_text(text)
    folder = tmp_path / "run"
    flags = ["--hyperparams", str(tmp_path / "small.yml"), "--total-timesteps", "1_28", "--run-dir", str(folder)]
    assert agents.cli.main(["train", *flags, "--env.rates", "1.5", "2.5"]) == 0
    saved = json.loads((folder / "config.json").read_text())["config"]
    assert (saved["n_envs"], saved["total_timesteps"], saved["env"]["rates"]) == (4, 128, [1.5, 2.5])
    assert f"trained: {folder}" in capsys.readouterr().out
    assert agents.cli.main(["train", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_ends_the_command_with_130(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: BaseCallback) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("agents.learning.ppo.callbacks.TrainingLog._on_step", interrupted)
    assert agents.cli.main(["train", "--run-dir", str(tmp_path / "run"), "--no-progress", "--n-envs", "32"]) == 130
    captured = capsys.readouterr()
    assert f"llmsched train --resume --run-dir {tmp_path / 'run'} goes on from step-" in captured.out
    assert captured.err.splitlines()[-1:] == ["llmsched: interrupted"]


def test_unwritable_folder_ends_the_command_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert agents.cli.main(["train", "--run-dir", str(tmp_path / "file" / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("llmsched: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", {}),
        ("--env.profile h100-mistral-7b", {"num_blocks": 28072}),
        ("--env.profile h100-mistral-7b --env.engine.max-num-seqs 9", {"num_blocks": 28072, "max_num_seqs": 9}),
        ("--env.profile h100-mistral-7b --env.engine.num-blocks 14000", {}),
        ("--env.engine.num-blocks 9000", {"num_blocks": 9000}),
    ],
)
def test_a_training_server_has_the_memory_of_its_device(flags: str, expected: dict[str, int]) -> None:
    assert _parse("train", flags.split()).config().env.engine == EngineConfig().replace(**expected)


def test_hyperparameters_on_a_device_have_its_memory(tmp_path: Path) -> None:
    file = tmp_path / "own.yml"
    file.write_text("LLMSched-v0: {env_kwargs: {profile: h100-mistral-7b, engine: {max_num_seqs: 9}}}")
    assert TrainConfig.from_yaml(file).env.engine == EngineConfig(num_blocks=28072, max_num_seqs=9)


def test_a_training_draws_its_worlds_from_a_suite() -> None:
    config = _parse("train", ["--env.scenarios", "training"]).config()
    assert config.env.scenarios == load_suite("training").scenarios


DEVICES: tuple[list[str], ...] = ([], ["--env.profile", "l40s-mistral-7b"])


def test_flags_are_checked_beside_the_values_of_the_file(tmp_path: Path) -> None:
    """64 steps and batches of 5376 fit the rows of the recipe for queues, not those of the usual hyperparameters."""
    recipe = str(queue_recipe())
    config = _parse("train", ["--hyperparams", recipe, "--n-steps", "64", "--batch-size", "5376"]).config()
    assert (config.n_steps, config.batch_size, config.queue.is_on) == (64, 5376, True)
    path = tmp_path / "other.yml"
    path.write_text("LLMSched-v0:\n  env_kwargs: {profile: h100-mistral-7b}\n")
    kept, moved = (_parse("train", ["--hyperparams", str(path), *more]).config().env for more in DEVICES)
    assert (kept.profile, moved.profile) == ("h100-mistral-7b", "l40s-mistral-7b")
    assert kept.engine.num_blocks == EnvConfig().on("h100-mistral-7b").engine.num_blocks


def test_help_shows_the_defaults_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parse("train", ["--hyperparams", str(queue_recipe()), "--help"])
    assert "(default: 12000000)" in capsys.readouterr().out
