"""`llmsched compare`: settings of an engine against each other on a frozen suite, as one table for a pull request."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from agents.evaluation.suite_runs import RunOptions
from agents.options import ReportOptions
from agents.reporting.compare_tables import html_text, markdown_text, scenario_grids, totals_grid, verdict_lines
from agents.reporting.grid import print_lines, show, terminal_console
from agents.reporting.result_folder import ResultFolder
from agents.studies.referee.records import OptionComparison
from agents.studies.referee.run import OptionStudy, compare_options
from agents.studies.referee.variants import DEFAULT_ENGINE, ENGINES, parse_options
from agents.suite_options import SuiteOptions
from agents.work.files import claimed
from agents.work.processes import workers_for
from agents.work.progress import OnProgress, bars
from engine.errors import InputError

OptionTexts = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""The option --option, which is given once for each name."""


@dataclass(frozen=True, kw_only=True)
class Command(SuiteOptions, ReportOptions):
    """Compare settings of an engine on a frozen suite: one table for a pull request.

    Every setting serves the same requests, 5 workloads at 3 loads with 10 seeds, identified by digests; the others are
    compared with the first one. OUT/table.md can be pasted; `llmsched verify` runs OUT/compare.json again. Finished
    runs are kept in OUT: after an interruption --resume goes on from there.
    """

    engine: str | None = None
    """Engine, with the defaults that it has: vllm (default), sglang, trtllm or lightllm."""
    policy: str | None = None
    """Policy instead of an engine, perhaps with settings that stay (sarathi, vllm_v1:version=0.24, mine.py:Mine)."""
    option: OptionTexts = ()
    """NAME=VALUE,VALUE: a parameter of the policy, or else a setting of the server (async_scheduling=false,true;
    `engine.config`). Given more than once: all combinations, the last option running through its values first."""
    baseline: str | None = None
    """Setting that the others are compared with, such as watermark=0.02 (default: the first value of each option)."""
    suite: str = "referee"
    """Scenarios: referee, another suite that ships (see `llmsched score`), or a .yml file of yours."""
    out: Path = Path("out/compare")
    """Folder of the results (compare.json, report.html, table.md, cells.jsonl)."""

    def study(self) -> OptionStudy:
        """Which settings are compared on what.

        Raises:
            InputError: options that do not fit.
        """
        if self.engine is not None and self.policy is not None:
            raise InputError("engine, policy: expected one of them, got both")
        engine = self.engine or DEFAULT_ENGINE
        if engine not in ENGINES:
            raise InputError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r} (any policy: --policy)")
        policy = self.policy or ENGINES[engine]
        options = parse_options(self.option)
        suite = self.scenarios()
        study = OptionStudy(suite, policy, options, self.baseline)
        if len(study.variants) < 2:
            raise InputError(f"option: expected two settings to compare at least, got {study.variants[0].name!r} alone")
        return study

    def run(self) -> None:
        """Run, print, write.

        Raises:
            InputError: options that do not fit, or a place that cannot be written.
        """
        study = self.study()
        places = ResultFolder(self.out, "compare", self.json, self.report)
        places.check()
        with claimed(self.out, "compare"), bars(self.progress) as progress:
            result = self._compare(study, progress)
            places.write(result, markdown_text(result), partial(html_text, result))
        console = terminal_console()
        for grid in scenario_grids(result):
            show(grid, console, self.wide)
        show(totals_grid(result), console, self.wide)
        print_lines(console, verdict_lines(result))
        print(f"for a pull request: {self.out / 'table.md'}", *places.lines(), sep="\n")

    def _compare(self, study: OptionStudy, progress: OnProgress) -> OptionComparison:
        progress("getting ready", 0, 0)
        return compare_options(study, RunOptions(workers_for(self.workers), self.out, self.resume, progress))
