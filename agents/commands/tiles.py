"""`llmsched tiles`: the table of `agents.studies.tile_study`."""

from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from agents.options import ProgressOptions, TableOptions
from agents.reporting.grid import show, terminal_console
from agents.reporting.study_tables import tiles_grid
from agents.studies import tile_study
from agents.work.files import check_writable, json_text, write_atomically
from agents.work.progress import bars
from engine.errors import InputError
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
            InputError: fewer than one request, or a file that cannot be written.
        """
        if self.num_requests < 1:
            raise InputError(f"num_requests: expected a whole number >= 1, got {self.num_requests}")
        check_writable(self.json)
        console = terminal_console()
        with bars(self.progress) as progress:
            result = tile_study.study(self.num_requests, self.seed, progress=progress)
        show(tiles_grid(result), console, self.wide)
        for reading in tile_study.readings(result):
            console.print(Text(reading))
        if self.json is not None:
            write_atomically(self.json, json_text(result))
