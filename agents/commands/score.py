"""`llmsched score`: one number for each policy over a suite of scenarios, and where it breaks what others keep."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from agents.evaluation.suite_runs import RunOptions
from agents.options import ReportOptions
from agents.policies import split_policies
from agents.reporting.grid import print_lines, show, terminal_console
from agents.reporting.result_folder import ResultFolder
from agents.reporting.score_tables import html_text, markdown_text, scenario_grids, totals_grid, verdict_lines
from agents.studies.score.records import Score
from agents.studies.score.run import Contest, run_contest
from agents.suite_options import SuiteOptions
from agents.work.files import claimed
from agents.work.processes import workers_for
from agents.work.progress import OnProgress, bars
from engine.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Command(SuiteOptions, ReportOptions):
    """Score policies over a suite: a table for each scenario, the totals, and what each breaks that others keep.

    Beside the policies the references run (sarathi, slai, vllm_v1, slackfit): 100 is the best goodput and the shortest
    mean TTFT of these in every scenario. Finished runs are kept in OUT: after an interruption --resume goes on from
    there.
    """

    policies: Annotated[tuple[str, ...], tyro.conf.Positional] = ("pretrained",)
    """Policies: baselines (slai:offset=3), random, folders of trained policies, classes of your own; several also with
    commas between them."""
    out: Path = Path("out/score")
    """Folder of the results (score.json, report.html, table.md, cells.jsonl)."""

    def contest(self) -> Contest:
        """Who is scored on what.

        Raises:
            InputError: options that do not fit.
        """
        if not self.policies:
            raise InputError("policies: expected at least one, got none")
        policies = split_policies(",".join(self.policies))
        return Contest(self.scenarios(), policies)

    def run(self) -> None:
        """Run, print, write.

        Raises:
            InputError: options that do not fit, or a place that cannot be written.
        """
        contest = self.contest()
        places = ResultFolder(self.out, "score", self.json, self.report)
        places.check()
        with claimed(self.out, "score"), bars(self.progress) as progress:
            result = self._score(contest, progress)
            places.write(result, markdown_text(result), partial(html_text, result))
        console = terminal_console()
        for grid in scenario_grids(result):
            show(grid, console, self.wide)
        show(totals_grid(result), console, self.wide)
        print_lines(console, verdict_lines(result))
        print(*places.lines(), sep="\n")

    def _score(self, contest: Contest, progress: OnProgress) -> Score:
        progress("getting ready", 0, 0)
        workers = workers_for(self.workers)
        return run_contest(contest, RunOptions(workers, self.out, self.resume, progress))
