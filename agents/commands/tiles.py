"""`llmsched tiles`: the table of `agents.studies.tile_study`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from agents.options import ProgressOptions, TableOptions
from agents.reporting.grid import Grid, Head, Part, show, terminal_console
from agents.studies import tile_study
from agents.work.files import check_writable, json_text, write_atomically
from agents.work.progress import bars
from engine.errors import InputError


@dataclass(frozen=True)
class Command(TableOptions, ProgressOptions):
    """Saturated throughput on a purely tile-proportional device: RAD and others against the bound 1/E[w]."""

    num_requests: int = 24_000
    """Requests in the queue at time 0."""
    seed: int = 0
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
        show(_table(result), console, self.wide)
        for reading in tile_study.readings(result):
            console.print(Text(reading))
        if self.json is not None:
            write_atomically(self.json, json_text(result))


def _table(result: dict[str, Any]) -> Grid:
    setting, bounds = result["setting"], result["bounds"]
    heads = [Head("policy", "prose")]
    for t0 in bounds:
        heads += [Head(f"t0 = {t0}"), Head("of 1/E[w]", "number", 1)]
    blank = ("",) * (2 * len(bounds) - 1)
    rows = [
        ("bound 1/E[w], prompts padded to tiles", *_pairs(bounds, "padded")),
        ("bound for packed tokens (t0 = 0)", f"{bounds['0']['tokens']:.4f}", *blank),
    ]
    for row in result["rows"]:
        values = [(row["throughput"][t0], row["share_of_bound"][t0]) for t0 in bounds]
        rows.append((row["name"], *(text for v, share in values for text in (f"{v:.4f}", f"{100 * share:.1f} %"))))
    title = f"Saturated throughput, requests per tile column of time ({setting['tile_tokens']} tokens)"
    caption = f"{setting['requests']} requests, {setting['lengths']}; t0: fixed cost of an iteration in columns"
    return Grid(heads, [Part(rows, title, frozenset({1}))], caption)


def _pairs(bounds: dict[str, dict[str, float]], name: str) -> list[str]:
    return [text for bound in bounds.values() for text in (f"{bound[name]:.4f}", "100 %")]
