"""`llmsched directions`: the studies of `agents.studies.directions`."""

from dataclasses import dataclass
from pathlib import Path

from agents.options import ProgressOptions, TableOptions, UpToMillion, WorkerOptions
from agents.reporting.grid import show, terminal_console
from agents.reporting.study_tables import directions_grid
from agents.studies import directions
from agents.work.files import check_writable, write_json
from agents.work.processes import workers_for
from agents.work.progress import bars


@dataclass(frozen=True)
class Command(TableOptions, ProgressOptions, WorkerOptions):
    """Published comparisons of schedulers again, in their own settings: measured figures beside the published ones."""

    only: str | None = None
    """Comma-separated studies: ltr, trail, elis, wait, alise, past_future (default: all)."""
    seeds: UpToMillion = 5
    """Number of seeds."""
    json: Path | None = None
    """Also write every figure to this file."""

    def run(self) -> None:
        """Measure, print, write.

        Raises:
            InputError: an unknown study, a number out of range, or a file that cannot be written.
        """
        studies = directions.chosen(self.only)
        check_writable(self.json)
        workers = workers_for(self.workers)
        console, results = terminal_console(), []
        for study in studies:
            with bars(self.progress) as progress:
                result = directions.measure(study, self.seeds, workers, progress)
            results.append(result)
            show(directions_grid(result), console, self.wide)
        write_json(self.json, {"studies": results})
