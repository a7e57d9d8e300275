"""`llmsched sensitivity`: the study of `agents.studies.sensitivity`."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from agents.evaluation.arrivals import arrivals_note, by_load
from agents.evaluation.setup import Setup
from agents.options import ComparisonOptions
from agents.reporting.grid import print_lines, show, terminal_console
from agents.reporting.study_plots import check_plot, plot_sensitivity, write_plot
from agents.reporting.study_tables import sensitivity_grids
from agents.studies import sensitivity
from agents.work.files import check_writable, write_json
from agents.work.processes import workers_for
from agents.work.progress import bars
from engine.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Command(ComparisonOptions):
    """Policies that believe length predictions against one that does not, by prediction error and load."""

    policies: str = "ltr,trail:batch_cap=128,elis:batch_size=128,alise,srtf"
    """Policies that need predictions, comma separated."""
    reference: str | None = "sarathi"
    """Policy without predictions that the others are compared with."""
    channels: str = "rank:tau=1;rank:tau=0.8;rank:tau=0.64;rank:tau=0.52;rank:tau=0.28;rank:tau=0"
    """Channels of predictions, separated by semicolons, such as oracle;gauss:mae=100 (see `llmsched workloads`)."""
    rates: str = "1.4,1.6,1.8"
    """Arrival rates in requests/s: a list or start:end:step."""
    plot: Path | None = None
    """Also draw the relative mean latency against the error into this PNG file."""

    def run(self) -> None:
        """Measure, print, write.

        Raises:
            InputError: options that do not fit, or a file that cannot be written.
        """
        if self.prediction is not None:
            raise InputError("prediction: expected --channels here, got --prediction")
        if self.resume:
            raise InputError("resume: a sensitivity study cannot be resumed")
        check_writable(self.json)
        check_plot(self.plot)
        result = self._measure()
        console = terminal_console()
        for grid in sensitivity_grids(result):
            show(grid, console, self.wide)
        print_lines(console, [arrivals_note(by_load((run.load, run.arrival_rate) for run in result.cells))])
        write_json(self.json, result)
        write_plot(self.plot, partial(plot_sensitivity, result))

    def _measure(self) -> sensitivity.Sensitivity:
        channels = tuple(part.strip() for part in self.channels.split(";") if part.strip())
        setup, loads = self._setup(), self.loads(None, self.rates)
        workers = workers_for(self.workers)
        with bars(self.progress) as progress:
            progress("getting ready", 0, 0)
            on_run = partial(progress, "runs")
            return sensitivity.sensitivity(setup, loads, channels, workers=workers, on_run=on_run)

    def _setup(self) -> Setup:
        reference = self.reference or "sarathi"
        both = replace(self, policies=f"{reference},{self.policies}", reference=reference)
        return Setup(**both.setup())
