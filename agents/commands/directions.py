"""`llmsched directions`: the studies of `agents.studies.directions`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from agents.files import check_writable, json_text, write_atomically
from agents.processes import default_workers
from agents.reporting.tables import console_for_tables
from agents.studies import directions
from engine.errors import InputError


@dataclass(frozen=True)
class Command:
    """Published comparisons of schedulers again, in their own settings: measured figures beside the published ones."""

    only: str | None = None
    """Comma-separated studies: ltr, trail, elis, wait, alise, past_future (default: all)."""
    seeds: int = 5
    """Number of seeds."""
    workers: int | None = None
    """Processes (default: one per core); the result does not depend on it."""
    json: Path | None = None
    """Also write every figure to this file."""

    def run(self) -> None:
        """Measure, print, write.

        Raises:
            InputError: an unknown study, a number out of range, or a file that cannot be written.
        """
        if self.seeds < 1:
            raise InputError(f"seeds: expected a whole number >= 1, got {self.seeds}")
        studies = directions.chosen(self.only)
        check_writable(self.json)
        workers = default_workers() if self.workers is None else self.workers
        console, results = console_for_tables(), []
        for study in studies:
            with console.status("") as status:
                result = directions.measure(study, self.seeds, workers, status.update)
            results.append(result)
            console.print(_table(result))
        if self.json is not None:
            write_atomically(self.json, json_text({"studies": results}))


def _figure(value: dict[str, Any] | None, times: bool = False) -> str:
    if value is None or value["mean"] is None:
        return "-"
    text = f"{value['mean']:.3g}"
    if times and value["low"] is not None:
        text += f" [{value['low']:.3g}, {value['high']:.3g}]"
    return text


def _table(result: dict[str, Any]) -> Table:
    study = result["study"]
    held = "comes out" if result["holds"] else "does NOT come out"
    table = Table(
        title=f"{study['name']} ({study['paper']}): {study['published']}",
        caption=f"{study['workload']}, {study['config']['num_blocks']} KV blocks, mean over {result['seeds']} seeds. "
        f"The direction {held} at the highest rate. {study['remark']}",
    )
    table.add_column("rate", justify="right")
    table.add_column("policy")
    for title in directions.METRICS.values():
        table.add_column(title, justify="right")
    table.add_column(f"{directions.METRICS[study['metric']].partition(',')[0]}: times lower", justify="right")
    for row in result["rows"]:
        figures = [_figure(row[name]) for name in directions.METRICS]
        table.add_row(f"{row['rate']:g}", row["policy"], *figures, _figure(row["times_lower"], times=True))
        if row["policy"] == _last(study):
            table.add_section()
    return table


def _last(study: dict[str, Any]) -> str:
    return str((study["reference"], study["policy"], *study["more"])[-1])
