"""Several training runs that differ in their seed, side by side, each in a folder of its own: RUN_DIR/seed-0, ...

A machine that does not see these folders trains in one of its own, and what is in that comes back when the run is done.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agents.learning.ppo.checkpoint import checkpoints
from agents.learning.ppo.train import CHECKPOINTS, train
from agents.learning.ppo.train_config import TrainConfig
from agents.learning.run_folder import CONFIG_FILE
from agents.work.files import LOCK, claimed, empty_folder, is_ours, locked, write_atomically
from agents.work.processes import run_in_order
from agents.work.progress import OnProgress, unseen
from engine.errors import InputError

KIND = "train seeds"
"""The mark of the folder around those of the runs."""
_LOST_S = 60.0
"""Seconds that a lost worker may take to end, before its run goes on elsewhere."""
Files = dict[str, bytes]
"""What is in a folder, by the paths in it."""


class Task(NamedTuple):
    """One run."""

    config: TrainConfig
    kept: Files
    """What its folder holds to go on from."""


def folder_of(run_dir: Path, seed: int) -> Path:
    """Where the run of one seed is."""
    return run_dir / f"seed-{seed}"


def train_seeds(
    config: TrainConfig, seeds: Sequence[int], workers: int, progress: OnProgress = unseen
) -> tuple[Path, ...]:
    """Train once with each seed; every run is what `train` makes of its configuration.

    Args:
        config: the runs but for their seed; with `resume` each goes on from its last checkpoint, or begins.
        seeds: one for each run.
        workers: runs at once (`agents.work.processes.run_tasks`).
        progress: called at the start and after each run.

    Returns:
        The folders of the runs.

    Raises:
        InputError: as `train`, or no seed, or one twice.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds: expected each once, got {', '.join(map(str, seeds)) or 'none'}")
    with claimed(config.run_dir, KIND):
        tasks = [_task(config, seed) for seed in seeds]
        results = run_in_order(_train_one, tasks, workers, partial(progress, "seeds"))
        for task, files in zip(tasks, results, strict=True):
            _write(task.config.run_dir, files)
    return tuple(task.config.run_dir for task in tasks)


def _task(config: TrainConfig, seed: int) -> Task:
    """The run of one seed.

    Raises:
        InputError: its folder holds a run that is not to go on.
    """
    folder = folder_of(config.run_dir, seed)
    one = replace(config, run_dir=folder, seed=seed, progress=False)
    if config.resume:
        return Task(one, _read(folder))
    if checkpoints(folder / CHECKPOINTS):
        raise InputError(f"run_dir: {folder} already holds a run; --resume continues it, or choose another folder")
    empty_folder(folder, "train")
    return Task(one, {})


def _train_one(task: Task) -> Files:
    """Train; what is in the folder, if the command does not see it."""
    if is_ours(task.config.run_dir.parent, KIND):
        _train_in(task.config.run_dir, task.config)
        return {}
    with tempfile.TemporaryDirectory(prefix="llmsched-train-") as place:
        folder = Path(place) / task.config.run_dir.name
        _write(folder, task.kept)
        _train_in(folder, task.config)
        return _read(folder)


def _train_in(folder: Path, config: TrainConfig) -> None:
    """Begin the run, or go on with what is there: that of a worker that was lost, too."""
    with locked(folder, _LOST_S):
        train(replace(config, run_dir=folder, resume=(folder / CONFIG_FILE).exists()))


def _read(folder: Path) -> Files:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        write_atomically(folder / name, content)
