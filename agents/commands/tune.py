"""`llmsched tune`: the best setting of a baseline on a workload."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import baselines
from agents.evaluation.arrivals import arrivals_note, by_load
from agents.options import (
    ProgressOptions,
    ServerOptions,
    SourceOptions,
    TableOptions,
    UpToMillion,
    WorkerOptions,
    parse_rates,
)
from agents.policies import split_policies
from agents.reporting.grid import Grid, Head, Part, figure, print_lines, show, terminal_console
from agents.studies import tuning
from agents.work.cells import CellFile
from agents.work.files import check_writable, is_stdout, locked
from agents.work.processes import workers_for
from agents.work.progress import bars
from engine.errors import InputError

HEADS = (Head("policy", "name"), Head("default"), Head("tuned"), Head("setting", "name"), Head("tried", "number", 1))


@dataclass(frozen=True, kw_only=True)
class Command(SourceOptions, ServerOptions, ProgressOptions, TableOptions, WorkerOptions):
    """Find the best setting of baselines on training traces (what ships is called NAME:tuned)."""

    policies: Annotated[str, tyro.conf.Positional]
    """Names of baselines and places of your own classes (FILE.py:Class, whose attribute `space` says what to try),
    comma separated, or all."""
    rates: str = "1.4,1.6,1.8,2.0"
    """Arrival rates in requests/s: a list or start:end:step; each counts the same."""
    seeds: UpToMillion = 2
    """Training traces at each rate; none of them is ever used in an evaluation."""
    save: Path = Path("out/tuned.json")
    """Note the best settings in this table: workload (@ profile, if not the default one) -> policy -> setting."""
    resume: bool = False
    """Go on with an interrupted run with the same requests and server: what it measured is in NAME.cells.jsonl beside
    the table NAME.json."""

    def run(self) -> None:
        """Tune one after the other; each result is saved at once.

        Raises:
            InputError: options that do not fit, or a file that cannot be written.
        """
        names = tuple(baselines.names()) if self.policies == "all" else split_policies(self.policies)
        for name in names:
            tuning.space_of(name)
        ground = tuning.Ground(
            rates=parse_rates(self.rates),
            source=self.source(),
            seeds=self.seeds,
            model=self.model(),
            config=self.engine,
        )
        if is_stdout(self.save):
            raise InputError(f"save: expected a file, which is added to, got {self.save}")
        check_writable(self.save)
        tuning.saved(self.save)
        cells = self.save.with_suffix(".cells.jsonl")
        with locked(cells):
            kept = CellFile(cells, ground.digest(), tuning.Cost, self.resume)
            rows = [self._tuned(name, ground, kept) for name in names]
        title = f"Seconds per request (TTFT + late gaps), {self._workload()}, geometric mean over loads"
        console = terminal_console()
        show(Grid(HEADS, [Part(rows, title)]), console, self.wide)
        print_lines(console, [arrivals_note(by_load(ground.realised_rates()))])
        print(f"written: {self.save}")

    def _tuned(self, name: str, ground: tuning.Ground, kept: CellFile[tuning.Cost]) -> tuple[str, ...]:
        """Tune one policy and save its best setting; returns its row of the table."""
        with bars(self.progress) as bar:
            found = tuning.tune(name, ground, workers_for(self.workers), bar.log, bar, kept)
        default, best = found[0], found[-1]
        tuning.save(self.save, self._workload(), best.spec)
        return name, figure(default.cost, ".3f"), figure(best.cost, ".3f"), best.spec, str(len(found) - 2)

    def _workload(self) -> str:
        """What the settings belong to: the trace's name or the workload as it was given, own tiers, another device."""
        workload = Path(self.trace).name if self.trace else (self.workload or "poisson")
        if self.tier:
            tiers = (f"{t.name}:{t.share:g}:{t.tbt_s:g}:{t.ttft_s:g}" for t in self.source().tiers)
            workload = f"{workload} tiers {' '.join(tiers)}"
        return workload if self.profile == ServerOptions.profile else f"{workload}@{self.profile}"
