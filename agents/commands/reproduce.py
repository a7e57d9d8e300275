"""`llmsched reproduce`: the tables of `agents.studies.reproduce`."""

from dataclasses import dataclass
from pathlib import Path

from agents.evaluation.arrivals import arrivals_note, by_load
from agents.options import ProgressOptions, TableOptions, UpToMillion, parse_rates
from agents.reporting.grid import print_lines, show, terminal_console
from agents.reporting.study_tables import deviations_grid, figures_grid, gains_grid
from agents.studies import reproduce
from agents.work.files import check_writable, write_json
from agents.work.progress import bars
from engine.ranges import Count


@dataclass(frozen=True)
class Command(TableOptions, ProgressOptions):
    """Reproduce the SLAI paper's comparison: Sarathi FCFS against SLAI by load, and the gain in capacity."""

    lengths: Path | None = None
    """Real length file (num_prefill_tokens,num_decode_tokens), requests drawn as by the public SLAI code; without it
    lengths come from the shipped openchat_sharegpt4 table."""
    rates: str = "1.0:2.2:0.2"
    """Nominal arrival rates in requests/s: a list or start:end:step."""
    seeds: UpToMillion = 3
    """Number of seeds, from 42 on (42 is the public code's)."""
    num_requests: Count = 2500
    """Requests per run."""
    json: Path | None = None
    """Also write every cell to this file."""

    def run(self) -> None:
        """Measure, print, write.

        Raises:
            InputError: a number out of range, an unreadable length file, or a file that cannot be written.
        """
        check_writable(self.json)
        console = terminal_console()
        study = reproduce.load_study(self.lengths, self.num_requests)
        seeds = range(reproduce.SEEDS[0], reproduce.SEEDS[0] + self.seeds)
        with bars(self.progress) as progress:
            result = reproduce.reproduce(study, parse_rates(self.rates), seeds, progress=progress)
        for semantics in reproduce.SEMANTICS:
            show(figures_grid(result, semantics), console, self.wide)
        show(gains_grid(result), console, self.wide)
        print_lines(console, [arrivals_note(by_load((cell.rate, cell.arrival_rate) for cell in result.cells))])
        if result.deviations:
            show(deviations_grid(result), console, self.wide)
        write_json(self.json, result)
