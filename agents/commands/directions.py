"""`llmsched directions`: the studies of `agents.studies.directions`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agents.evaluation.arrivals import arrivals_note, by_load
from agents.options import ProgressOptions, TableOptions
from agents.reporting.grid import Grid, Head, Part, show, terminal_console
from agents.studies import directions
from agents.work.files import check_writable, json_text, write_atomically
from agents.work.processes import default_workers
from agents.work.progress import bars
from engine.errors import InputError


@dataclass(frozen=True)
class Command(TableOptions, ProgressOptions):
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
        console, results = terminal_console(), []
        for study in studies:
            with bars(self.progress) as progress:
                result = directions.measure(study, self.seeds, workers, progress)
            results.append(result)
            show(_table(result), console, self.wide)
        if self.json is not None:
            write_atomically(self.json, json_text({"studies": results}))


def _figure(value: dict[str, Any] | None, times: bool = False) -> str:
    if value is None or value["mean"] is None:
        return "-"
    text = f"{value['mean']:.3g}"
    if times and value["low"] is not None:
        text += f" [{value['low']:.3g}, {value['high']:.3g}]"
    return text


def _table(result: dict[str, Any]) -> Grid:
    study, rows = result["study"], []
    metric = directions.METRICS[study["metric"]]
    for row in result["rows"]:
        figures = [_figure(row[name]) for name in directions.METRICS]
        rows.append((f"{row['rate']:g}", row["policy"], *figures, _figure(row["times_lower"], times=True)))
    ends = frozenset(k for k, row in enumerate(rows) if row[1] == _last(study))
    numbers = [Head(title, "number", 0 if title == metric else 1) for title in directions.METRICS.values()]
    heads = (Head("rate", "name"), Head("policy", "name"), *numbers, Head(f"{metric.partition(',')[0]}: times lower"))
    held = "comes out" if result["holds"] else "does NOT come out"
    came = by_load((row["rate"], row["arrival_rate"]["mean"]) for row in result["rows"])
    remark = f"{study['remark']}. " if study["remark"] else ""
    caption = (
        f"{study['workload']}, {study['config']['num_blocks']} KV blocks, mean over {result['seeds']} seeds. "
        f"The direction {held} at the highest rate. {remark}{arrivals_note(came)}"
    )
    return Grid(heads, [Part(rows, f"{study['name']} ({study['paper']}): {study['published']}", ends)], caption)


def _last(study: dict[str, Any]) -> str:
    return str((study["reference"], study["policy"], *study["more"])[-1])
