"""Runs with several seeds: each is what one training makes, wherever it is done."""

import sys
from pathlib import Path

import pytest

import agents.cli
from agents.learning.ppo import train_seeds as seeds_module
from agents.learning.ppo.train import train
from agents.learning.ppo.train_seeds import train_seeds
from agents.work.files import claimed
from engine.errors import InputError
from tests.agents.learning.training import SMALL, small


def weights(folder: Path) -> bytes:
    return (folder / "final" / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """What trainings with seeds 0 and 3 give, one after the other."""
    place = tmp_path_factory.mktemp("alone")
    return [weights(train(small(place / str(seed), total_timesteps=128, seed=seed))) for seed in (0, 3)]


@pytest.mark.parametrize("seen", [True, False], ids=["in the folders of the command", "on another machine"])
def test_every_seed_trains_as_if_it_were_alone(
    tmp_path: Path, alone: list[bytes], seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not seen:
        monkeypatch.setattr(seeds_module, "is_ours", lambda folder, kind: False)
    done: list[tuple[str, int, int]] = []
    config = small(tmp_path / "runs", total_timesteps=128)
    found = train_seeds(config, (0, 3), 1, lambda *told: done.append(told))
    assert found == (tmp_path / "runs" / "seed-0", tmp_path / "runs" / "seed-3")
    assert [weights(folder) for folder in found] == alone
    assert done == [("seeds", k, 2) for k in range(3)]
    assert len(list((found[0] / "checkpoints").iterdir())) >= 1
    with pytest.raises(InputError, match="seed-0 already holds a run; --resume continues it"):
        train_seeds(config, (0,), 1)


@pytest.mark.parametrize("seen", [True, False], ids=["in the folders of the command", "on another machine"])
def test_resumed_runs_go_on_and_further_ones_begin(
    tmp_path: Path, alone: list[bytes], seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not seen:
        monkeypatch.setattr(seeds_module, "is_ours", lambda folder, kind: False)
    train_seeds(small(tmp_path, total_timesteps=64), (0,), 1)
    found = train_seeds(small(tmp_path, total_timesteps=128, resume=True), (0, 3), 1)
    assert [weights(folder) for folder in found] == alone
    steps = sorted(path.name for path in (found[0] / "checkpoints").iterdir())
    assert len(steps) == 2, "that of the first part is still there"


def test_a_lost_worker_leaves_what_the_next_one_goes_on_from(tmp_path: Path, alone: list[bytes]) -> None:
    task = seeds_module._task(small(tmp_path / "runs", total_timesteps=128), 0)
    with claimed(tmp_path / "runs", seeds_module.KIND):
        train(small(task.config.run_dir, total_timesteps=64))
        assert seeds_module._train_one(task) == {}
    assert weights(task.config.run_dir) == alone[0]


def test_command_trains_several_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.yml").write_text(SMALL)
    monkeypatch.setattr(sys, "argv", ["llmsched"])
    flags = ["train", "--hyperparams", str(tmp_path / "small.yml"), "--seeds", "1,2", "--workers", "1"]
    flags += ["--run-dir", str(tmp_path / "runs")]
    assert agents.cli.main([*flags, "--total-timesteps", "64"]) == 0
    assert f"evaluate --policies sarathi,{tmp_path}/runs/seed-1,{tmp_path}/runs/seed-2)" in capsys.readouterr().out
    assert agents.cli.main([*flags, "--total-timesteps", "64"]) == 2
    assert "seed-1 already holds a run" in capsys.readouterr().err
    resume = ["train", "--resume", "--seeds", "1,2", "--workers", "1", "--run-dir", str(tmp_path / "runs")]
    assert agents.cli.main([*resume, "--total-timesteps", "128"]) == 0
    assert list((tmp_path / "runs" / "seed-2" / "checkpoints").glob("step-*128.safetensors"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seeds 0,0", "seeds: expected each once, got 0, 0"),
        ("--seeds 0,x", "seeds: expected a whole number"),
        ("--seeds 4294967296", "seed: expected"),
        ("--workers 2", "workers, backend: expected --seeds beside them"),
        ("--resume --seeds 0", "seed-0"),
    ],
)
def test_what_does_not_fit_several_seeds_is_one_line(
    tmp_path: Path, flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agents.cli.main(["train", *flags.split(), "--run-dir", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
