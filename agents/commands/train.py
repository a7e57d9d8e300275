"""`llmsched train`: PPO on one server."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.learning.ppo.env_flags import registry
from agents.learning.ppo.train_config import TrainConfig
from agents.learning.run_folder import CONFIG_FILE
from agents.options import TierTexts, WorkerOptions
from agents.work.processes import workers_for
from agents.work.progress import bars
from engine.demand.tiers import parse_tiers
from engine.demand.trace_files import has_times
from engine.demand.trace_options import Unservable
from engine.errors import InputError
from engine.extras import need
from engine.files.reading import file_digest
from engine.ranges import SEED

__all__ = ["Choosing", "Command", "on_trace", "registry"]

DEFAULT = "LLMSched-v0"


def on_trace(config: TrainConfig, trace: str, unservable: Unservable = "refuse") -> TrainConfig:
    """The same training on the requests of a trace file, which is read and checked.

    Raises:
        InputError: the file cannot be read, or holds nothing that the server can serve.
    """
    changes: dict[str, Any] = {"trace": trace, "unservable": unservable}
    recorded = has_times(trace)
    if recorded:
        changes["arrivals"] = "recorded"
    workload = replace(config.env.workload, **changes)
    env = replace(config.env, workload=workload, rates=() if recorded else config.env.rates)
    env.workload.generate(0)
    env = replace(env, workload=replace(env.workload, trace_sha256=file_digest(trace)))
    return replace(config, env=env)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from a list such as 0,1,2.

    Raises:
        InputError: one is no seed.
    """
    return tuple(int(SEED.parse(part.strip(), "seeds")) for part in text.split(","))


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where the environment runs."""

    profile: str | None = None
    """Hardware profile, instead of the hyperparameters'."""


@dataclass(frozen=True, kw_only=True)
class Choosing:
    """The flags that choose the defaults of the others."""

    hyperparams: str = DEFAULT
    """An environment id or a file."""
    run_dir: Path | None = None
    """Folder of the run."""
    resume: bool = False
    """Whether the run in the folder goes on."""
    seeds: str = ""
    """Seeds of several runs, each in its folder in that one."""
    env: Device = Device()
    """The device, whose memory the server has."""

    def preset(self) -> "Command":
        """The command with other defaults: of the run to resume, or of a hyperparameter file on the device.

        Raises:
            InputError: no such run or file, or one that does not fit.
        """
        base = TrainConfig.from_yaml(self.hyperparams)
        if self.hyperparams == DEFAULT and self.resume:
            return Command(train=self._resumed(self.run_dir or base.run_dir))
        env = base.env if self.env.profile is None else base.env.on(self.env.profile)
        return Command(train=replace(base, env=env))

    def _resumed(self, folder: Path) -> TrainConfig:
        """The configuration of the run to go on with; of several, that of the first one that began."""
        if not self.seeds:
            return TrainConfig.of_run(folder)
        runs = [folder / f"seed-{seed}" for seed in parse_seeds(self.seeds)]
        began = next((run for run in runs if (run / CONFIG_FILE).exists()), runs[0])
        return replace(TrainConfig.of_run(began), run_dir=folder)


@dataclass(frozen=True, kw_only=True)
class Command(WorkerOptions):
    """Train a scheduler with PPO into a run folder (checkpoints, TensorBoard, policy bundles).

    Ctrl-C stops it; llmsched train --resume --run-dir RUN_DIR goes on from there, exactly: everything else is in the
    folder (--total-timesteps, --checkpoint-every, --keep-checkpoints and --eval-every may differ). Evaluate the run by
    naming its folder: llmsched evaluate --policies slai,sarathi,RUN_DIR
    """

    hyperparams: str = DEFAULT
    """Defaults of the other flags: an environment id with a shipped file, or a .yml file of the same shape."""
    trace: str | None = None
    """Train on this trace file instead of a synthetic workload: episodes are its rows at their recorded times, each
    from a random row on; of a file without times the lengths are drawn. The run and its policies record its hash."""
    unservable: Unservable = "refuse"
    """Rows of the trace that cannot be served (too long, without tokens, out of order): refuse or skip them."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig.from_yaml)
    """The run."""
    seeds: str = ""
    """Several runs that differ in their seed, such as 0,1,2, side by side (--workers, --backend), each in its folder
    RUN_DIR/seed-N."""
    tier: TierTexts = ()
    """A service tier of the training's requests, once for each, instead of those of the hyperparameters:
    name=paid,share=0.05,tbt=0.1,ttft=2 (seconds; see `llmsched simulate --help`)."""

    def config(self) -> TrainConfig:
        """The run with the tiers that were given.

        Raises:
            InputError: tiers that do not fit.
        """
        if not self.tier:
            return self.train
        workload = replace(self.train.env.workload, tiers=parse_tiers(self.tier, "tier"))
        return replace(self.train, env=replace(self.train.env, workload=workload))

    def run(self) -> None:
        """Train and say where the result is.

        Raises:
            InputError: options that do not fit, or a folder that cannot be used.
            KeyboardInterrupt: stopped; says how to go on.
        """
        need("train", "train")
        config = self.config()
        config = config if self.trace is None else on_trace(config, self.trace, self.unservable)
        if self.seeds:
            return self._run_seeds(config)
        if self.workers is not None or self.backend != "processes":
            raise InputError("workers, backend: expected --seeds beside them, got none: one run is one process")
        self._run_one(config)

    def _run_seeds(self, config: TrainConfig) -> None:
        """Train with each seed and say where the results are."""
        from agents.learning.ppo.train_seeds import train_seeds

        folder = config.run_dir
        try:
            with bars(config.progress) as progress:
                found = train_seeds(config, parse_seeds(self.seeds), workers_for(self.workers), progress)
        except KeyboardInterrupt:
            print(
                f"interrupted; llmsched train --resume --seeds {self.seeds} --run-dir {folder} goes on from "
                "the last checkpoint of each"
            )
            raise
        names = ",".join(map(str, found))
        print(f"trained: {folder} (tensorboard --logdir {folder}; llmsched evaluate --policies sarathi,{names})")

    def _run_one(self, config: TrainConfig) -> None:
        """Train and say where the result is."""
        from agents.learning.ppo.checkpoint import checkpoints
        from agents.learning.ppo.train import CHECKPOINTS, train

        folder = config.run_dir
        try:
            train(config)
        except KeyboardInterrupt:
            kept = checkpoints(folder / CHECKPOINTS)
            what = f"goes on from {kept[-1].name}" if kept else "begins anew: nothing was learned yet"
            print(f"interrupted; llmsched train --resume --run-dir {folder} {what}")
            raise
        print(f"trained: {folder} (tensorboard --logdir {folder}; llmsched evaluate --policies sarathi,{folder})")
