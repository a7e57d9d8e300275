"""`llmsched evaluate`: policies head to head on the same arrivals."""

from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from agents.evaluation.evaluate import Evaluation, evaluate
from agents.evaluation.result import Comparison
from agents.options import ComparisonOptions, GoodputOptions, ReportOptions
from agents.reporting.grid import terminal_console
from agents.reporting.report import write_report
from agents.reporting.tables import print_tables
from agents.work.files import check_writable, claimed, write_json
from agents.work.processes import workers_for
from agents.work.progress import OnProgress, bars
from engine.extras import command, missing, need
from engine.ranges import Rate


@dataclass(frozen=True, kw_only=True)
class Command(ComparisonOptions, GoodputOptions, ReportOptions):
    """Compare policies on the same arrivals: tables, intervals, plots, one HTML file.

    Finished cells are kept in OUT/cells.jsonl: after an interruption --resume goes on from there.
    """

    policies: str = "slai,sarathi,vllm"
    """Policies, comma separated: baselines (slai:offset=3), random, folders of trained policies."""
    rate: Rate | None = None
    """Arrival rate, requests/s (default 1.6, or the recorded times of a trace)."""
    rates: str | None = None
    """Several of them: 1.0,1.4,1.8 or 1.0:2.0:0.2 (both ends included)."""
    out: Path = Path("out/evaluate")
    """Folder of the results."""
    plots: bool = True
    """Draw plots and the HTML report (extra: report); without them, what only they show (behaviour) is not measured
    either."""
    behaviour: bool = True
    """Watch five minutes of each policy at each load: batch lengths, held decodes, overtaking (for a plot)."""

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
        if self.report is not None:
            need("report", "report")
        with claimed(self.out, "evaluate"), bars(self.progress) as progress:
            result, written = self._run(evaluation, progress)
        console = terminal_console()
        print_tables(result, console, self.wide)
        if self._draws() and (name := missing("report")) is not None:
            console.print(Text(f"no plots and no HTML report: there is no {name}; {command('report')}"))
        console.print(Text(f"written: {written}", style="dim"))

    def _run(self, evaluation: Evaluation, progress: OnProgress) -> tuple[Comparison, Path]:
        """The result, and the place to look at."""
        progress("getting ready", 0, 0)
        draws = self._draws() and missing("report") is None
        result = evaluate(
            evaluation,
            workers=workers_for(self.workers),
            cells_path=self.out / "cells.jsonl",
            resume=self.resume,
            with_behaviour=self.behaviour and draws,
            progress=progress,
        )
        write_json(self.json, result)
        written = write_report(result, self.out, self.report, draws, progress)
        return result, written[-1] if draws else self.out

    def _draws(self) -> bool:
        return self.plots or self.report is not None
