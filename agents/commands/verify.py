"""`llmsched verify`: a result run again, and the first place at which it comes out otherwise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.evaluation.suite_runs import RunOptions
from agents.options import ProgressOptions, WorkerOptions
from agents.studies.referee.verify import read_result, verify
from agents.work.processes import workers_for
from agents.work.progress import bars

DIFFERS = 1
"""Exit code of a result that comes out otherwise."""


@dataclass(frozen=True, kw_only=True)
class Command(ProgressOptions, WorkerOptions):
    """Run a result again and compare it to the last bit: of compare, evaluate, score, capacity, devices, headroom.

    Prints "identical", or the first number that differs with the run that it is in, the versions that differ, and how
    many runs met other requests. Exit code: 0 identical, 1 not, 2 bad input.
    """

    result: Annotated[Path, tyro.conf.Positional]
    """The JSON file, or the folder of the command."""
    trace: str | None = None
    """The trace file, if one was served; its digest must be that in the result."""

    def run(self) -> None:
        """Read, run, print.

        Raises:
            InputError: no result that can be run again.
            SystemExit: it came out otherwise.
        """
        data = read_result(self.result)
        with bars(self.progress) as progress:
            progress("getting ready", 0, 0)
            found = verify(data, self.trace, RunOptions(workers_for(self.workers), progress=progress))
        print(*found.lines(), sep="\n")
        if not found.is_identical:
            raise SystemExit(DIFFERS)
