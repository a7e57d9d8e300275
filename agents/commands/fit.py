"""`llmsched fit`: from the table of `llmsched profile` to a profile."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from agents.files import check_writable, write_atomically
from agents.reporting.residual_plot import plot_residuals
from agents.reporting.tables import console_for_tables
from agents.studies import profiling
from engine import fitting


@dataclass(frozen=True, kw_only=True)
class Command:
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
        check_writable(self.out, self.plot)
        points = profiling.read_points(self.table)
        model = fitting.fit(points, self.name or self.out.stem, profiling.read_provenance(self.table))
        table = Table(title=f"{model.name}: errors in % of the measured seconds")
        for title in ("batches", "points", "mean", "p95", "largest"):
            table.add_column(title, justify="left" if title == "batches" else "right")
        for kind, error in model.provenance["residuals"].items():
            figures = (f"{error[key]:.1f}" for key in ("mape", "p95", "max"))
            table.add_row(kind, str(int(error["points"])), *figures)
        console_for_tables().print(table)
        model.save(self.out)
        print(f"written: {self.out}")
        if self.plot is not None:
            write_atomically(self.plot, plot_residuals(model, points))
            print(f"written: {self.plot}")
