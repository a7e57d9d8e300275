"""`llmsched fit`: from the table of `llmsched profile`, or from data of others, to a profile."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.device import calibration, profiling
from agents.device.importing.model import memory_of
from agents.device.importing.source import Importing
from agents.device.importing.sources import import_table
from agents.options import TableOptions
from agents.reporting.grid import Grid, Head, Part, show, terminal_console
from agents.reporting.study_plots import check_plot, plot_residuals, write_plot
from agents.work.files import check_apart, check_writable, is_stdout
from engine.device import fitting
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.files.reading import is_there
from engine.ranges import Count, Seconds


@dataclass(frozen=True, kw_only=True)
class Command(Importing, TableOptions):
    """Fit a latency profile to measured batches; its errors on held-out batches go into it."""

    table: Path | None = None
    """CSV table of `llmsched profile`; with --from: where the imported one is written (default: OUT as .csv)."""
    source: Annotated[tuple[str, ...], tyro.conf.arg(name="from")] = ()
    """Import the table: llmservingsim DIR (layers measured in vLLM), aiconfigurator (NVIDIA's tables of kernels; needs
    that extra, --system and --model), vllm-log FILE (iterations that a server logged; the guide has the format)."""
    out: Path = Path("out/profile.json")
    """The profile, for --profile."""
    name: str | None = None
    """Its name (default: the name of the file)."""
    overhead: Seconds | None = None
    """Host time to add to every iteration, s: what tables of kernels lack (vLLM 0.19: 0.0013)."""
    match: str | None = None
    """Find that time from a published number: tpot=MS@BATCH, or tpot=MS@BATCHxCONTEXT (default: 1024 KV tokens)."""
    num_blocks: Count | None = None
    """KV blocks of 16 tokens on the device, the default of --engine.num-blocks (default: what the data say)."""
    note: str | None = None
    """What else a reader of the profile should know; goes into its provenance."""
    plot: Path | None = None
    """Also plot predicted against measured seconds to this PNG file."""

    def run(self) -> None:
        """Import, fit, print the errors, write.

        Raises:
            InputError: options that do not fit, data or a table that cannot be read or have too few points, or files
                that cannot be written.
        """
        check_writable(self.out)
        match = None if self.match is None else calibration.Match.parse(self.match)
        if match is not None and self.overhead is not None:
            raise InputError("overhead, match: expected one of them, got both")
        table = self._table()
        check_writable(*([table] if self.source else []))
        check_plot(self.plot)
        if self.source:
            import_table(self.source, self, table)
            print(f"written: {table}")
        points = profiling.read_points(table)
        model = fitting.fit(points, self.name or self.out.stem, self._provenance(table))
        self._show(model)
        self._calibrated(model, match).save(self.out)
        print(f"written: {self.out}")
        write_plot(self.plot, lambda: plot_residuals(model, points))

    def _table(self) -> Path:
        """The table to fit, which is imported first if there is a source."""
        if not self.source:
            self.refuse_others((), "they go with --from")
        if self.table is None and (not self.source or is_stdout(self.out)):
            raise InputError("table: expected a table of `llmsched profile` or a place for that of --from, got none")
        table = self.table or self.out.with_suffix(".csv")
        check_apart({"table": table, "out": self.out})
        if self.source and is_there(table) and not is_there(profiling.beside(table)):
            raise InputError(f"table: expected a new file for that of --from, or such a table, got {table}")
        return table

    def _provenance(self, table: Path) -> dict[str, Any]:
        """What the table was measured on, with the memory for KV."""
        provenance = profiling.read_provenance(table)
        given = {"num_blocks": self.num_blocks, "note": self.note}
        return {**provenance, **memory_of(provenance), **{key: value for key, value in given.items() if value}}

    def _calibrated(self, model: LatencyModel, match: "calibration.Match | None") -> LatencyModel:
        """The fitted model with the host's time."""
        if match is not None:
            return calibration.matched(model, match)
        return model if self.overhead is None else calibration.with_overhead(model, self.overhead, "given to the fit")

    def _show(self, model: LatencyModel) -> None:
        """Print the errors of each set of points."""
        rows = [
            (kind, str(int(error["points"])), *(f"{error[key]:.1f}" for key in ("mape", "p95", "max")))
            for kind, error in model.provenance["residuals"].items()
        ]
        heads = (Head("batches", "name"), *(Head(title) for title in ("points", "mean", "p95", "largest")))
        title = f"{model.name}: errors in % of the measured seconds"
        show(Grid(heads, [Part(rows, title)]), terminal_console(), self.wide)
