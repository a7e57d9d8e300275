"""`llmsched curves`: learning curves of trainings by the recipe for queues."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.evaluation.suite_runs import RunOptions
from agents.options import ProgressOptions, TableOptions, UpToMillion, WorkerOptions
from agents.reporting.curve_plots import plot_curves
from agents.reporting.grid import Grid, Head, Part, figure, show, terminal_console
from agents.reporting.study_plots import check_plot, write_plot
from agents.studies.curves import Panel, heldout_panels, save_past, suite_panel
from agents.work.files import claimed, write_json
from agents.work.processes import workers_for
from agents.work.progress import bars
from engine.errors import InputError
from engine.extras import need
from engine.scenarios.suite import load_suite


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions, ProgressOptions, WorkerOptions):
    """Show how trainings by the recipe for queues went: on their held-out traces, and over suites by checkpoint.

    Folders that differ only in a number at the end (runs/queue-0, runs/queue-1) are seeds of one recipe, whose mean is
    drawn, too. Finished runs of a suite are kept in OUT/SUITE: after an interruption --resume goes on from there.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of trainings."""
    suites: tuple[str, ...] = ()
    """Suites over which the policy of each checkpoint is scored: default, devices, overload, heldout, or .yml files of
    yours."""
    others: tuple[str, ...] = ("slackfit:tuned", "pretrained")
    """Policies that are scored beside them."""
    seeds: UpToMillion | None = None
    """Seeds 0 ... N-1 of the suites (default: as many as each says)."""
    resume: bool = False
    """Go on with interrupted runs of the same configuration."""
    out: Path = Path("out/curves")
    """Folder of the results (curves.json, curves.png, the policies, the runs of each suite)."""

    def run(self) -> None:
        """Read, score, print, write.

        Raises:
            InputError: folders without a training by this recipe, options that do not fit, or a place that cannot be
                written.
        """
        need("train", "curves")
        plot = self.out / "curves.png"
        check_plot(plot)
        with claimed(self.out, "curves"):
            panels = [*heldout_panels(self._runs()), *self._suite_panels()]
            write_json(self.out / "curves.json", panels)
            write_plot(plot, lambda: plot_curves(panels))
        show(_grid(panels), terminal_console(), self.wide)
        print(f"written: {self.out / 'curves.json'}, {plot}")

    def _runs(self) -> list[Path]:
        names = [run.name for run in self.runs]
        if not names or len(set(names)) < len(names):
            raise InputError(f"runs: expected folders, each with a name of its own, got {', '.join(names) or 'none'}")
        return list(self.runs)

    def _suite_panels(self) -> list[Panel]:
        if not self.suites:
            return []
        suites = [load_suite(name, self.seeds) for name in self.suites]
        past, found, workers = save_past(self._runs(), self.out / "policies"), [], workers_for(self.workers)
        for suite in suites:
            folder = self.out / Path(suite.name).stem
            with claimed(folder, "curves of a suite"), bars(self.progress) as progress:
                begun = self.resume and (folder / "cells.jsonl").exists()  # the interruption may have come before it
                found.append(suite_panel(suite, past, self.others, RunOptions(workers, folder, begun, progress)))
        return found


def _grid(panels: list[Panel]) -> Grid:
    """The last value of each training, a column for each panel."""
    last = [{line.run: line.values[-1] for line in panel.lines} | dict(panel.levels) for panel in panels]
    names = list(dict.fromkeys(name for values in last for name in values))
    heads = [Head("training", "name"), *(Head(f"{panel.title}: {panel.unit}") for panel in panels)]
    rows = [[name, *(figure(values.get(name), ".1f") for values in last)] for name in names]
    return Grid(heads, [Part(rows, "At the end")])
