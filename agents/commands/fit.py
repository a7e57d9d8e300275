"""`llmsched fit`: from the table of `llmsched profile` to a profile."""

from dataclasses import dataclass
from pathlib import Path

from agents.device import profiling
from agents.options import TableOptions
from agents.reporting.grid import Grid, Head, Part, show, terminal_console
from agents.reporting.study_plots import check_plot, plot_residuals
from agents.work.files import check_writable, write_atomically
from engine.device import fitting


@dataclass(frozen=True, kw_only=True)
class Command(TableOptions):
    """Fit a latency profile to measured batches; its errors on held-out batches go into it."""

    table: Path
    """CSV table of `llmsched profile`."""
    out: Path = Path("out/profile.json")
    """The profile, for --profile."""
    name: str | None = None
    """Its name (default: the name of the file)."""
    plot: Path | None = None
    """Also plot predicted against measured seconds to this PNG file."""

    def run(self) -> None:
        """Fit, print the errors, write.

        Raises:
            InputError: a table that cannot be read or has too few points, or files that cannot be written.
        """
        check_writable(self.out)
        check_plot(self.plot)
        points = profiling.read_points(self.table)
        model = fitting.fit(points, self.name or self.out.stem, profiling.read_provenance(self.table))
        rows = [
            (kind, str(int(error["points"])), *(f"{error[key]:.1f}" for key in ("mape", "p95", "max")))
            for kind, error in model.provenance["residuals"].items()
        ]
        heads = (Head("batches", "name"), *(Head(title) for title in ("points", "mean", "p95", "largest")))
        title = f"{model.name}: errors in % of the measured seconds"
        show(Grid(heads, [Part(rows, title)]), terminal_console(), self.wide)
        model.save(self.out)
        print(f"written: {self.out}")
        if self.plot is not None:
            write_atomically(self.plot, plot_residuals(model, points))
            print(f"written: {self.plot}")
