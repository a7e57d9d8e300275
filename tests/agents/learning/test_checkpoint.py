"""Checkpoints: whatever a file holds, nothing of it runs or grows; resume needs the folder and loses nothing."""

import json
import os
import pickle
import resource
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from safetensors.numpy import load, save
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import agents.cli
from agents.learning.ppo.checkpoint import checkpoints, load_checkpoint
from agents.learning.ppo.checkpoint_file import FORMAT, DamagedCheckpoint
from agents.learning.ppo.rollout import TimedPPO
from agents.learning.ppo.train import CHECKPOINTS, build_model, train
from agents.learning.ppo.train_config import TrainConfig
from agents.work.files import claimed
from engine.errors import InputError
from engine.scenarios.suite import read_scenarios
from tests.agents.learning.training import small

About = dict[str, Any]
Arrays = dict[str, np.ndarray]


class StopAt(BaseCallback):
    """Presses Ctrl-C at a step of the rows, counted over the whole run."""

    def __init__(self, decisions: int) -> None:
        super().__init__()
        self.decisions = decisions

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.decisions:
            raise KeyboardInterrupt
        return True


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(small(tmp_path_factory.mktemp("runs") / "run", total_timesteps=256))


@pytest.fixture(scope="module")
def model(run: Path) -> TimedPPO:
    return build_model(small(run))


def parts(path: Path) -> tuple[Arrays, About]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return load(data), json.loads(header["__metadata__"]["about"])


def write(path: Path, arrays: Arrays, about: About) -> None:
    path.write_bytes(save(arrays, metadata={"format": FORMAT, "about": json.dumps(about)}))


def state_of(folder: Path) -> tuple[dict[str, tuple[Any, ...]], About]:
    """A run's last checkpoint without the wall-clock times of its episodes."""
    arrays, about = parts(checkpoints(folder / CHECKPOINTS)[-1])
    for episode in about["episodes"]:
        del episode["t"]
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}, about


def uncompressed(arrays: Arrays, name: str) -> bytes:
    return zlib.decompress(arrays[name].tobytes())


def compressed(data: bytes) -> np.ndarray:
    return np.frombuffer(zlib.compress(data), np.uint8)


def largest(arrays: Arrays) -> str:
    return max((name for name in arrays if name.startswith("environment.")), key=lambda n: len(uncompressed(arrays, n)))


def bomb(arrays: Arrays, about: About) -> None:
    stream = zlib.compressobj(1)
    data = b"".join(stream.compress(bytes(1 << 20)) for _ in range(128)) + stream.flush()
    arrays[largest(arrays)] = np.frombuffer(data, np.uint8)


def short(arrays: Arrays, about: About) -> None:
    arrays[largest(arrays)] = compressed(uncompressed(arrays, largest(arrays))[:-8])


def cut_stream(arrays: Arrays, about: About) -> None:
    arrays[largest(arrays)] = arrays[largest(arrays)][:-6]


def servers(arrays: Arrays, byte: int) -> None:
    for name in [name for name in arrays if name.startswith("environment.fleet.servers")]:
        arrays[name] = compressed(bytes([byte]) * len(uncompressed(arrays, name)))


def overflow(arrays: Arrays, about: About) -> None:
    arrays["policy.mlp_extractor.policy_net.0.bias"].fill(10.0)
    arrays["policy.action_net.weight"].fill(3e38)


HOSTILE = {
    "a zlib bomb": (bomb, "another number of bytes"),
    "too few bytes": (short, "another number of bytes"),
    "a stream that is cut off": (cut_stream, "another number of bytes"),
    "no stream": (lambda a, b: a.update({largest(a): np.zeros(9, np.uint8)}), "damaged"),
    "an array too many": (lambda a, b: a.update(x=np.zeros(3)), "unknown array 'x'"),
    "an array too few": (lambda a, b: a.pop("rows.last_obs"), "missing array 'rows.last_obs'"),
    "another shape": (lambda a, b: a.update({"rows.last_obs": a["rows.last_obs"][:1]}), "rows.last_obs: expected"),
    "another type": (lambda a, b: a.update({"rows.returns": a["rows.returns"].astype(np.int64)}), "rows.returns"),
    "nan": (lambda a, b: a["policy.action_net.weight"].fill(np.nan), "finite numbers"),
    "weights that overflow": (overflow, "damaged"),
    "half an optimiser": (lambda a, b: a.pop("optimizer.0.exp_avg"), "missing array 'optimizer.0.exp_avg'"),
    "a negative variance": (lambda a, b: a["optimizer.0.exp_avg_sq"].fill(-1.0), "expected numbers >= 0"),
    "torch's generator": (lambda a, b: a["generators.torch"].fill(255), "damaged"),
    "numpy's position": (lambda a, b: b.update(numpy=b["numpy"].replace('"pos": ', '"pos": -9999')), "pos = -9999"),
    "another generator": (lambda a, b: b.update(numpy=b["numpy"].replace("MT19937", "PCG64")), "state of a MT19937"),
    "python's generator": (lambda a, b: b.update(python=[3, [1, 2], None]), "damaged"),
    "a row's generator": (lambda a, b: b["environment"].update({stream(b): "{}"}), "state of a PCG64"),
    "a count of rows": (lambda a, b: b["environment"].update(num_envs=10**9), "num_envs"),
    "a step that is no number": (lambda a, b: b.update(num_timesteps="many"), "num_timesteps: expected"),
    "a huge step": (lambda a, b: b.update(num_timesteps=10**400), "num_timesteps: expected"),
    "episodes of text": (lambda a, b: b.update(episodes=[{"r": "x", "l": 1, "t": 0}]), "episodes: expected"),
    "a step that is not the name's": (lambda a, b: b.update(num_timesteps=512), "that of the file's name"),
    "a variance below 0": (lambda a, b: a["normalization.obs_var"].fill(-1.0), "'obs_var': expected numbers"),
    "statistics of nothing": (lambda a, b: a["normalization.obs_count"].fill(0.0), "'obs_count': expected numbers"),
    "a mean out of range": (lambda a, b: a["normalization.obs_mean"].fill(1e300), "'obs_mean': expected numbers"),
    "negative lengths": (lambda a, b: a["rows.lengths"].fill(-5), "rows.lengths: expected"),
    "servers that do not fit": (lambda a, b: servers(a, 255), "damaged"),
    "no run": (lambda a, b: b.pop("run"), "run: expected a mapping"),
}


def stream(about: About) -> str:
    return next(name for name in about["environment"] if "_generators" in name)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_checkpoint_is_refused_in_one_line(name: str, run: Path, model: TimedPPO, tmp_path: Path) -> None:
    damage, message = HOSTILE[name]
    arrays, about = parts(checkpoints(run / CHECKPOINTS)[-1])
    arrays = {key: value.copy() for key, value in arrays.items()}
    damage(arrays, about)
    write(tmp_path / "step-000000000256.safetensors", arrays, about)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DamagedCheckpoint, match=message) as caught:
        load_checkpoint(model, tmp_path / "step-000000000256.safetensors", small(run).digest)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (60 << 10)


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """The file with some bytes changed, half of the time in its header, and sometimes cut off."""
    data = bytearray(whole)
    end = 8 + int.from_bytes(whole[:8], "little") if rng.random() < 0.5 else len(data)
    for at in rng.integers(0, end, rng.integers(1, 5)):
        data[at] = rng.integers(256)
    return bytes(data[: rng.integers(len(data))] if rng.random() < 0.2 else data)


def test_mutated_checkpoints_are_refused_in_one_line_or_load(run: Path, model: TimedPPO, tmp_path: Path) -> None:
    path, refusals, rng = tmp_path / "step-000000000256.safetensors", [], np.random.default_rng(12)
    write(path, *parts(checkpoints(run / CHECKPOINTS)[-1]))  # without the digest, which would notice everything
    whole = path.read_bytes()
    for _ in range(200):
        path.write_bytes(mutated(whole, rng))
        try:
            load_checkpoint(model, path, small(run).digest)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not [line for line in refusals if "\n" in line or str(path) not in line]


def test_no_checkpoint_is_unpickled(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(small(run))

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (th, "load")):
        monkeypatch.setattr(owner, name, refuse)
    load_checkpoint(model, checkpoints(run / CHECKPOINTS)[-1], small(run).digest)
    assert model.num_timesteps == 256


@pytest.mark.parametrize("kind", ["cut", "one bit"])
def test_a_damaged_newest_checkpoint_falls_back_to_an_older_whole_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """What is trained anew is the same to the last bit."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    newest = checkpoints(folder / CHECKPOINTS)[-1]
    data = bytearray(newest.read_bytes())
    weight = data.index(load(bytes(data))["policy.action_net.weight"].tobytes())
    data[weight] ^= 1
    newest.write_bytes(data if kind == "one bit" else data[:-100])
    train(TrainConfig.of_run(folder, progress=False))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("llmsched: ")]
    assert len(said) == 1
    assert newest.name in said[0]
    assert said[0].endswith("going on from step-000000000128.safetensors")
    assert state_of(folder) == state_of(run)


@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_stands_in_the_place_of_the_newest_checkpoint_is_not_written_through(
    run: Path, tmp_path: Path, kind: str
) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(run, folder)
    newest = checkpoints(folder / CHECKPOINTS)[-1]
    newest.unlink()
    elsewhere.write_bytes(b"other")
    # Opened for both, a pipe takes what is written without a reader.
    newest.symlink_to(elsewhere) if kind == "link" else os.mkfifo(newest)
    reader = os.open(newest, os.O_RDWR | os.O_NONBLOCK)
    train(TrainConfig.of_run(folder, progress=False))
    os.close(reader)
    assert elsewhere.read_bytes() == b"other"
    assert state_of(folder) == state_of(run)


def test_without_a_whole_checkpoint_one_line_says_so(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for path in checkpoints(folder / CHECKPOINTS):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"resume: expected a whole checkpoint, .*; 1 older ones are damaged, too"):
        train(TrainConfig.of_run(folder))


def test_a_checkpoint_of_another_configuration_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    other = train(small(tmp_path / "other", learning_rate=1e-3, total_timesteps=192))
    shutil.copy(checkpoints(other / CHECKPOINTS)[-1], folder / CHECKPOINTS / "step-000000000999.safetensors")
    with pytest.raises(InputError, match=r"step-000000000999.safetensors: belongs to a run of another configuration"):
        train(TrainConfig.of_run(folder))


def test_a_damaged_state_of_the_evaluation_is_a_damaged_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    newest = checkpoints(folder / CHECKPOINTS)[-1]
    arrays, about = parts(newest)
    write(newest, arrays, about | {"run": {"evaluation": "x"}})
    train(TrainConfig.of_run(folder, progress=False))
    assert "going on from step-000000000128.safetensors" in capsys.readouterr().err


def test_another_configuration_is_found_before_a_model_is_built(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    about = json.loads((folder / "config.json").read_text())
    about["config"]["net_arch"] = [4096] * 7
    (folder / "config.json").write_text(json.dumps(about))
    monkeypatch.setattr("agents.learning.ppo.train.build_model", None)
    with pytest.raises(InputError, match="belongs to a run of another configuration"):
        train(TrainConfig.of_run(folder))


@pytest.mark.parametrize(("key", "value"), [("device", "mars"), ("env_id", "CartPole-v1"), ("n_envs", 10**9)])
def test_a_configuration_that_cannot_be_built_is_one_line(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{key}: expected"):
        train(small(tmp_path / "run", **{key: value}))


def test_checkpoints_of_an_earlier_version_are_refused_by_name(tmp_path: Path) -> None:
    with claimed(tmp_path / "run", "train") as folder:
        (folder / CHECKPOINTS).mkdir()
        (folder / CHECKPOINTS / "step-000000000128.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"found only step-000000000128.pt of an earlier version"):
        train(small(tmp_path / "run", resume=True))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", '{"config": []}', '{"config": {"n_envs": "4"}}', "\xff", "[" * 9000]
)
def test_a_damaged_configuration_is_one_line(
    run: Path, tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert agents.cli.main(["train", "--resume", "--run-dir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{folder}/config.json" in error


def test_resume_needs_only_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Interrupted in its first rollout, before any checkpoint was due."""
    train(small(tmp_path / "whole", total_timesteps=192, seed=5))
    folder = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train(small(folder, total_timesteps=192, seed=5), StopAt(40))
    assert [path.name for path in checkpoints(folder / CHECKPOINTS)] == ["step-000000000000.safetensors"]
    command = ["train", "--resume", "--no-progress", "--run-dir", str(folder)]
    assert agents.cli.main([*command, "--learning-rate", "1"]) == 2
    assert "resume: learning_rate: expected 0.0003 as in" in capsys.readouterr().err
    assert agents.cli.main(command) == 0
    assert state_of(folder) == state_of(tmp_path / "whole")


def test_a_run_that_was_interrupted_before_its_first_decision_begins_anew(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / CHECKPOINTS)
    train(TrainConfig.of_run(folder, progress=False))
    assert "begins anew" in capsys.readouterr().err
    assert state_of(folder) == state_of(run)
    # TensorBoard itself shows one layout of the custom page, whatever a folder holds.
    found, expected = ({key for key in points(f) if not key[0].startswith("custom_scalars")} for f in (folder, run))
    assert found == expected


def points(folder: Path) -> Counter[tuple[str, int, Any]]:
    """All points but those of the wall clock."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0, "tensors": 0})
    events.Reload()
    tags: dict[str, Any] = events.Tags()
    found: Counter[tuple[str, int, Any]] = Counter()
    for tag in tags["scalars"]:
        found.update((tag, e.step, e.value) for e in events.Scalars(tag) if tag != "time/fps")
    for tag in tags["histograms"]:
        found.update((tag, e.step, str(e.histogram_value)) for e in events.Histograms(tag))
    for tag in tags["images"]:
        found.update((tag, e.step, e.encoded_image_string) for e in events.Images(tag))
    for tag in tags["tensors"]:
        found.update((tag, e.step, str(e.tensor_proto)) for e in events.Tensors(tag))
    return found


def test_tensorboard_keeps_every_point_over_interruptions(tmp_path: Path) -> None:
    changes = {"total_timesteps": 640, "checkpoint_every": 192, "eval_every": 128}
    train(small(tmp_path / "whole", **changes))
    folder = tmp_path / "parts"
    for resume, stop in ((False, 90), (True, 150), (True, 330), (True, 331), (True, 500), (True, None)):
        try:
            train(small(folder, resume=resume, **changes), *([StopAt(stop)] if stop else []))
        except KeyboardInterrupt:
            # As after a kill: what was saved at the interruption is gone, the last one that was due is left.
            if stop == 331:
                checkpoints(folder / CHECKPOINTS)[-1].unlink()
    whole = points(tmp_path / "whole")
    assert len(whole) > 100
    assert sum(whole.values()) == len(whole), "a point came twice"
    assert points(folder) == whole


def test_a_run_over_scenarios_goes_on_exactly(tmp_path: Path) -> None:
    worlds = [
        "poisson:rate=2,lengths=fixed:300,3",
        {"workload": "poisson:rate=9,lengths=fixed:90,9", "profile": "h100-mistral-7b", "tiers": ["name=all,tbt=0.1"]},
    ]
    env = replace(small(tmp_path).env, rates=(), scenarios=read_scenarios(worlds))
    train(small(tmp_path / "whole", env=env))
    with pytest.raises(KeyboardInterrupt):
        train(small(tmp_path / "parts", env=env), StopAt(200))
    train(TrainConfig.of_run(tmp_path / "parts", progress=False))
    assert state_of(tmp_path / "parts") == state_of(tmp_path / "whole")
