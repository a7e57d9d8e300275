"""Kills runs at random moments and goes on: no process left, no file damaged, the same result bit for bit.

    python scripts/kill_check.py --kills 100

Each trial starts a command in a folder of its own, sends TERM, KILL or INT to it after a random part of the time that
it takes, looks for processes that it left and for files that cannot be read, then resumes it (or starts it again, where
it cannot be resumed) and compares the result with that of a run that nobody killed. Prints a line for each trial and
the counts as JSON; ends with code 1 if anything was wrong.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.work.processes import child_environment

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
MARK = "LLMSCHED_KILL_CHECK"
SMALL = "--policies sarathi,slai --num-requests 1500 --workers 2"
RECIPE = "rates: [1.4]\nrequests: 150\ngenerations: 6\npopulation: 4\ntraces: 1\n"


@dataclass(frozen=True)
class Scene:
    """A command that is killed."""

    line: str
    """Its arguments; FOLDER stands for the folder of the trial."""
    result: Callable[[Path], Any]
    """What must be the same however it came about, from the folder."""
    resumable: Callable[[Path], bool] = lambda folder: False
    """Whether what is in the folder can be resumed; else the command starts again in an empty one."""
    resume: str = ""
    """How, if not by --resume behind the same line."""


def _json(name: str, *without: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
        return {key: value for key, value in data.items() if key not in without}

    return read


def _weights(folder: Path) -> bytes:
    return (folder / "final" / "weights.safetensors").read_bytes()


def _has_cells(folder: Path) -> bool:
    return (folder / "cells.jsonl").exists()


SCENES = {
    # Times of decisions are measured, so they differ from run to run.
    "evaluate": Scene(
        f"evaluate {SMALL} --rates 1.2:2.0:0.2 --seeds 3 --no-plots --out FOLDER",
        _json("result.json", "windows", "warnings"),
        _has_cells,
    ),
    "capacity": Scene(
        f"capacity {SMALL} --rates 1.0:2.0:0.2 --seeds 3 --out FOLDER", _json("capacity.json"), _has_cells
    ),
    "devices": Scene(
        f"devices {SMALL} --profiles h100-mistral-7b,l40s-mistral-7b --shares 0.6,0.9 --seeds 3 --out FOLDER",
        _json("devices.json"),
        lambda folder: (folder / "ceilings.jsonl").exists(),
    ),
    "score": Scene(
        "score pretrained --suite devices --seeds 2 --num-requests 400 --workers 2 --out FOLDER",
        _json("score.json"),
        _has_cells,
    ),
    "route": Scene(
        "route --num-requests 4000 --workers 2 --rates 4:8:1 --seeds 3 --out FOLDER",
        _json("route.json"),
        _has_cells,
    ),
    "tune": Scene(
        "tune sarathi --rates 1.6,2.0 --seeds 2 --num-requests 800 --workers 2 --save FOLDER/tuned.json",
        _json("tuned.json"),
        lambda folder: (folder / "tuned.cells.jsonl").exists(),
    ),
    "evolve": Scene(
        "evolve --recipe RECIPE --workers 2 --run-dir FOLDER",
        _weights,
        lambda folder: (folder / "config.json").exists(),
        "evolve --resume --workers 2 --run-dir FOLDER",
    ),
    "train": Scene(
        "train --total-timesteps 24576 --n-envs 64 --checkpoint-every 4096 --eval-every 0 --no-progress "
        "--run-dir FOLDER",
        _weights,
        lambda folder: any((folder / "checkpoints").glob("step-*")),
        "train --resume --no-progress --run-dir FOLDER",
    ),
}


def family(mark: str) -> list[int]:
    """Living processes that were started with a mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [int(entry.name)] if state != "Z" else []
        except OSError:
            continue
    return found


def start(line: str, folder: Path, mark: str, log: Path) -> "subprocess.Popen[bytes]":
    """Start a command; what it prints goes to a log."""
    recipe = folder.parent / "recipe.yml"
    recipe.write_text(RECIPE, encoding="utf-8")
    words = line.replace("FOLDER", str(folder)).replace("RECIPE", str(recipe)).split()
    environment = child_environment() | {MARK: mark, "PYTHONPATH": str(ROOT)}
    with log.open("ab") as out:
        command = [sys.executable, "-m", "agents.cli", *words]
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)


def whole(scene: Scene, folder: Path, log: Path, resume: bool = False) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed.
    """
    line = (scene.resume or f"{scene.line} --resume") if resume else scene.line
    process = start(line, folder, "whole", log)
    if process.wait() != 0:
        raise RuntimeError(f"code {process.returncode}: {log.read_text(errors='replace')[-600:]}")


def damaged(folder: Path) -> list[str]:
    """Files that cannot be read; what is being written has a name of its own and does not count."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".jsonl":
                # A last line without its end is taken off when the run is resumed.
                lines = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line.endswith("\n")]
                assert [json.loads(line) for line in lines]
            elif path.suffix in (".safetensors", ".ckpt") or path.parent.name == "checkpoints":
                from safetensors import safe_open

                with safe_open(path, "np") as file:
                    for name in file.keys():
                        file.get_tensor(name)
        except Exception as error:  # whatever it is, the file is damaged
            found.append(f"{path.relative_to(folder)}: {type(error).__name__} {error}")
    return found


def trial(scene: Scene, number: int, after_s: float, folder: Path, expected: Any) -> list[str]:
    """Kill one run and go on; returns what was wrong."""
    mark, log, faults = folder.name, folder.with_suffix(".log"), []
    process = start(scene.line, folder, mark, log)
    time.sleep(after_s)
    process.send_signal(number)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        faults.append("did not end within a minute")
        process.kill()
    if process.returncode not in (0, -number, 128 + number):
        faults.append(f"code {process.returncode}: {log.read_text(errors='replace')[-300:]}")
    deadline = time.monotonic() + 10.0
    while (left := family(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    faults += [f"orphan {pid}" for pid in left]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    if folder.exists():
        faults += [f"damaged: {text}" for text in damaged(folder)]
    resume = process.returncode != 0 and scene.resumable(folder)
    if process.returncode != 0:
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            whole(scene, folder, log, resume)
        except RuntimeError as error:
            return [*faults, f"cannot go on: {error}"]
    if scene.result(folder) != expected:
        faults.append("another result than without the interruption")
    return faults


def check(names: list[str], kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """All trials, in turn over the commands; returns the counts."""
    expected, seconds = {}, {}
    for name in names:
        for part in ("cold", "reference"):
            began = time.monotonic()
            whole(SCENES[name], folder / f"{name}-{part}", folder / f"{name}.log")
            seconds[name] = time.monotonic() - began
        expected[name] = SCENES[name].result(folder / f"{name}-reference")
    rng, wrong, signals = random.Random(seed), [], Counter[str]()
    for k in range(kills):
        name, number, share = names[k % len(names)], rng.choice(SIGNALS), rng.random()
        place = folder / f"trial-{k}"
        faults = trial(SCENES[name], number, share * seconds[name], place, expected[name])
        signals[signal.Signals(number).name] += 1
        print(f"{k + 1}/{kills} {name} {signal.Signals(number).name} at {share:.0%}: {faults or 'right'}", flush=True)
        wrong += [f"{name}: {fault}" for fault in faults]
        shutil.rmtree(place, ignore_errors=True)
    return {"kills": kills, "signals": dict(signals), "wrong": wrong}


def main() -> int:
    """Read the options, run the trials, print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--commands", default=",".join(SCENES), help="among " + ", ".join(SCENES))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = options.commands.split(",")
    if unknown := sorted(set(names) - set(SCENES)):
        parser.error(f"commands: expected names among {', '.join(SCENES)}, got {unknown[0]!r}")
    with tempfile.TemporaryDirectory() as folder:
        counts = check(names, options.kills, options.seed, Path(folder))
    print(json.dumps(counts))
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
