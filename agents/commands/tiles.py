"""`llmsched tiles`: the table of `agents.studies.tile_study`."""

from dataclasses import dataclass
from pathlib import Path

from agents.options import ProgressOptions, TableOptions
from agents.reporting.grid import print_lines, show, terminal_console
from agents.reporting.study_tables import tiles_grid
from agents.studies import tile_study
from agents.work.files import check_writable, write_json
from agents.work.progress import bars
from engine.ranges import Count, Seed


@dataclass(frozen=True)
class Command(TableOptions, ProgressOptions):
    """Saturated throughput on a purely tile-proportional device: RAD and others against the bound 1/E[w]."""

    num_requests: Count = 24_000
    """Requests in the queue at time 0."""
    seed: Seed = 0
    """Seed of the lengths."""
    json: Path | None = None
    """Also write the table to this file."""

    def run(self) -> None:
        """Measure, print, write.

        Raises:
            InputError: a file that cannot be written.
        """
        check_writable(self.json)
        console = terminal_console()
        with bars(self.progress) as progress:
            result = tile_study.study(self.num_requests, self.seed, progress=progress)
        show(tiles_grid(result), console, self.wide)
        print_lines(console, tile_study.readings(result))
        write_json(self.json, result)
