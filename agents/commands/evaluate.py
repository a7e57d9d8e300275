"""`llmsched evaluate`: policies head to head on the same arrivals."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.evaluation.evaluate import Evaluation, evaluate
from agents.evaluation.setup import OnCell
from agents.files import check_writable, claimed, json_text, write_atomically
from agents.options import ComparisonOptions, GoodputOptions
from agents.processes import default_workers
from agents.reporting.report import write_report


@dataclass(frozen=True, kw_only=True)
class Command(ComparisonOptions, GoodputOptions):
    """Compare policies on the same arrivals: tables, intervals, plots, one HTML file.

    Finished cells are kept in OUT/cells.jsonl: after an interruption --resume goes on from there.
    """

    policies: str = "slai,sarathi,vllm"
    """Policies, comma separated: baselines (slai:offset=3), random, folders of trained policies."""
    rate: float | None = None
    """Arrival rate, requests/s (default 1.6, or the recorded times of a trace)."""
    rates: str | None = None
    """Several of them: 1.0,1.4,1.8 or 1.0:2.0:0.2 (both ends included)."""
    out: Path = Path("out/evaluate")
    """Folder of the results."""
    report: Path | None = None
    """Put the HTML report here (default: report.html in OUT)."""
    plots: bool = True
    """Draw plots and the HTML report."""

    def evaluation(self) -> Evaluation:
        """What to run.

        Raises:
            InputError: options that do not fit.
        """
        return Evaluation(loads=self.loads(self.rate, self.rates), goodput=self.limits(), **self.setup())

    def run(self) -> None:
        """Run, print, write.

        Raises:
            InputError: options that do not fit, or a place that cannot be written.
        """
        evaluation = self.evaluation()
        check_writable(self.json, self.report)
        with claimed(self.out, "evaluate"):
            with_progress(lambda on_cell: self._run(evaluation, on_cell), self.wide)

    def _run(self, evaluation: Evaluation, on_cell: OnCell) -> dict[str, Any]:
        result = evaluate(
            evaluation,
            workers=default_workers() if self.workers is None else self.workers,
            cells_path=self.out / "cells.jsonl",
            resume=self.resume,
            on_cell=on_cell,
        )
        if self.json is not None:
            write_atomically(self.json, json_text(result))
        written = write_report(result, self.out, self.report, self.plots)
        return result | {"written": written[-1] if self.plots or self.report else self.out}


def with_progress(work: Callable[[OnCell], dict[str, Any]], wide: bool) -> None:
    """Do the work with a progress bar on a terminal's stderr, then print its tables."""
    from rich.console import Console

    from agents.reporting.grid import terminal_console
    from agents.reporting.tables import print_tables

    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("cells")
            result = work(lambda done, total: bar.update(task, completed=done, total=total))
    else:
        result = work(lambda done, total: None)
    console = terminal_console()
    print_tables(result, console, wide)
    console.print(f"written: {result['written']}", style="dim", highlight=False)
