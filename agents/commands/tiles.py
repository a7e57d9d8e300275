"""`llmsched tiles`: the table of `agents.studies.tile_study`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from agents.files import check_writable, json_text, write_atomically
from agents.reporting.tables import console_for_tables
from agents.studies import tile_study
from engine.errors import InputError


@dataclass(frozen=True)
class Command:
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
        console = console_for_tables()
        with console.status("") as status:
            result = tile_study.study(self.num_requests, self.seed, progress=status.update)
        console.print(_table(result))
        for reading in tile_study.readings(result):
            console.print(reading, highlight=False, markup=False, soft_wrap=True)
        if self.json is not None:
            write_atomically(self.json, json_text(result))


def _table(result: dict[str, Any]) -> Table:
    setting = result["setting"]
    table = Table(
        title=f"Saturated throughput, requests per tile column of time ({setting['tile_tokens']} tokens)",
        caption=f"{setting['requests']} requests, {setting['lengths']}; t0: fixed cost of an iteration in columns",
    )
    table.add_column("policy")
    for t0 in result["bounds"]:
        table.add_column(f"t0 = {t0}", justify="right")
        table.add_column("of 1/E[w]", justify="right")
    table.add_row("bound 1/E[w], prompts padded to tiles", *_pairs(result["bounds"], "padded"))
    table.add_row("bound for packed tokens (t0 = 0)", f"{result['bounds']['0']['tokens']:.4f}", end_section=True)
    for row in result["rows"]:
        values = [(row["throughput"][t0], row["share_of_bound"][t0]) for t0 in result["bounds"]]
        table.add_row(row["name"], *(text for v, share in values for text in (f"{v:.4f}", f"{100 * share:.1f} %")))
    return table


def _pairs(bounds: dict[str, dict[str, float]], name: str) -> list[str]:
    return [text for bound in bounds.values() for text in (f"{bound[name]:.4f}", "100 %")]
