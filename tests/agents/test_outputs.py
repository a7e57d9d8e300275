"""Every command finds out before its work that a result cannot be written, says so in one line, and harms nothing."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import agents.cli
from agents.evaluation.evaluate import Evaluation, evaluate
from agents.source import Source
from agents.work.files import claimed
from engine.config import EngineConfig
from engine.device.latency import load_profile

FILES = [
    *("simulate --json", "evaluate --json", "evaluate --report", "capacity --json", "sensitivity --json"),
    *("devices --json", "devices --report", "score slai --json", "score slai --report", "headroom slai --json"),
    *("sensitivity --plot", "starvation --json", "starvation --plot", "directions --json", "tiles --json"),
    *("reproduce --json", "bench --json", "fluid --json", "validate --json", "fit --table t.csv --out"),
    *("validate --against run.jsonl --json", "validate --against run.jsonl --plot"),
    *("validate --against run.jsonl --report", "route --json", "route --report", "region --json"),
    *("fit --table t.csv --plot", "tune slai --save", "profile --executor transformers:tiny --out"),
]
FOLDERS = [
    "evaluate --out",
    "capacity --out",
    "devices --out",
    "score slai --out",
    "headroom slai --out",
    "route --out",
    "evolve --run-dir",
    "mixture --run-dir",
    "train --run-dir",
    "demo --out",
]


class Worked(BaseException):
    """The command began its work."""


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any) -> None:
        raise Worked

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["engine.runs.simulate"], "run_in_pieces", work)
    monkeypatch.setattr(sys.modules["engine.cluster.simulate"], "compiled_run", work)
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("folder/config.json").write_text("mine")
    Path("circle").symlink_to("circle")


def files() -> dict[str, str]:
    return {str(path): path.read_text() for path in sorted(Path().rglob("*")) if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    before = files()
    code = agents.cli.main(line.split())
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("llmsched: ")
    assert err.count("\n") == 1
    assert words in err
    assert files() == before


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file/below", "file/below: cannot write (Not a directory)"),
        ("folder", "folder: expected a file to write, got a folder"),
        ("circle", "circle: cannot write (Too many levels of symbolic links)"),
    ],
)
@pytest.mark.parametrize("line", FILES)
def test_a_file_that_cannot_be_written(capsys: pytest.CaptureFixture[str], line: str, place: str, words: str) -> None:
    refused(capsys, f"{line} {place}", words)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file", "file: expected a folder, got a file"),
        ("file/below", "cannot write (Not a directory)"),
        ("folder", "folder: expected a new or empty folder or one of `llmsched "),
        (".", "got one that holds"),
    ],
)
@pytest.mark.parametrize("line", FOLDERS)
def test_a_folder_that_is_not_ours(capsys: pytest.CaptureFixture[str], line: str, place: str, words: str) -> None:
    refused(capsys, f"{line} {place}", words)


@pytest.mark.parametrize("line", FOLDERS)
def test_a_folder_that_another_run_uses(capsys: pytest.CaptureFixture[str], line: str) -> None:
    kind = line.split()[0]
    program = (
        "import pathlib, time; from agents.work.files import claimed\n"
        f"with claimed(pathlib.Path('busy'), {kind!r}):\n    print('held', flush=True); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(agents.cli.__file__).parents[1])}
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused(capsys, f"{line} busy", f"busy: in use by process {other.pid} on ")
    finally:
        other.kill()
        other.communicate()


def test_demo_removes_only_a_run_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with claimed(Path("demo"), "demo"):
        Path("demo/run").mkdir()
        Path("demo/run/config.json").write_text("mine")
    refused(capsys, "demo --out demo", "demo/run: expected a new or empty folder")


def test_what_is_read_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("t.csv").write_text("num_prefill_tokens,num_decode_tokens\n5,2\n")
    refused(capsys, "simulate --trace t.csv --json t.csv", "trace, json: expected two files, got t.csv for both")
    refused(capsys, "simulate --trace t.csv --json ./folder/../t.csv", "expected two files")
    refused(capsys, "tune slai --save -", "save: expected a file, which is added to, got -")
    refused(capsys, "evaluate --out -", "-: expected a folder, got standard output")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can make a device")
def test_a_device_stays_a_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.undo()
    folder = Path(os.environ["TMPDIR"]) if "TMPDIR" in os.environ else Path("/tmp")
    device = folder / f"null-{os.getpid()}"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_text("")
    except OSError:
        pytest.skip("devices cannot be made or used here")
    try:
        assert agents.cli.main(["simulate", "--workload", "toy", "--json", str(device)]) == 0
        assert stat.S_ISCHR(device.stat().st_mode)
    finally:
        device.unlink()


def _evaluation(seeds: int) -> Evaluation:
    return Evaluation(
        policies=("sarathi", "vllm"),
        source=Source(workload="poisson:lengths=lognormal:5,1,3,1,2000", num_requests=20),
        loads=(4.0,),
        seeds=seeds,
        reference="sarathi",
        profile=load_profile("rtx6000ada-mistral-7b"),
        config=EngineConfig(),
    )


def test_cells_of_another_configuration_in_the_same_file_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As two runs that wrote into one file left them: every line says what it belongs to."""
    monkeypatch.undo()
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    whole = evaluate(_evaluation(2), cells_path=ours, with_windows=False)
    evaluate(_evaluation(1), cells_path=theirs, with_windows=False)
    header, *cells = ours.read_text().splitlines()
    _, *foreign = theirs.read_text().splitlines()
    ours.write_text("\n".join([header, *foreign, cells[0], "{damaged", json.dumps({"config_hash": "x"})]) + "\n")
    counts: list[int] = []
    resumed = evaluate(
        _evaluation(2),
        cells_path=ours,
        resume=True,
        progress=lambda stage, done, _: counts.append(done),
        with_windows=False,
    )
    assert counts == [2, 3, 4]
    assert resumed == whole
    assert "4 lines are damaged or of another configuration; their cells are run again" in capsys.readouterr().err
