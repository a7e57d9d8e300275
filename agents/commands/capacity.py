"""`llmsched capacity`: the largest load that each policy sustains, by both criteria."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

from agents.evaluation.capacity import CRITERIA, NOBODY_SERVED, Search, search_capacity
from agents.options import ComparisonOptions, parse_rates
from agents.reporting.grid import Grid, Head, Part, show, terminal_console
from agents.work.files import check_writable, claimed, json_text, write_atomically
from agents.work.processes import default_workers
from agents.work.progress import OnProgress, bars
from engine.device.bounds import bound_note
from engine.errors import InputError

CRITERION_TEXT = {
    "paper": "median TTFT < 0.5 s and p99 TBT of each tier within its deadline",
    "sound": "also p99 TTFT < 10 s and no growing queue",
}

HEADS = (
    Head("policy", "name"),
    Head("req/s"),
    Head("over seeds", "number", 1),
    Head("gain"),
    Head("limited by", "prose", 2),
)


@dataclass(frozen=True, kw_only=True)
class Command(ComparisonOptions):
    """Find the largest arrival rate that each policy sustains, by the paper's and by the sound criterion."""

    rates: str | None = None
    """Grid instead of bisection: 1.0,1.4,1.8 or 1.0:2.0:0.1."""
    low: float = 0.1
    """Bisection starts between this rate ..."""
    high: float = 4.0
    """... and this one, requests/s,"""
    tolerance: float = 0.01
    """and ends when they are this close."""
    out: Path = Path("out/capacity")
    """Folder of the results (capacity.json, cells.jsonl)."""

    def search(self) -> Search:
        """Where to look.

        Raises:
            InputError: options that do not fit.
        """
        if self.rate_scale != 1.0:
            raise InputError("rate_scale: expected 1, since the capacity search sets the rate itself")
        rates = None if self.rates is None else parse_rates(self.rates)
        return Search(rates=rates, low=self.low, high=self.high, tolerance=self.tolerance, **self.setup())

    def run(self) -> None:
        """Search, print, write.

        Raises:
            InputError: options that do not fit, or a place that cannot be written.
        """
        search = self.search()
        check_writable(self.json)
        with claimed(self.out, "capacity"), bars(self.progress) as progress:
            result = self._search(search, progress)
        console = terminal_console()
        for grid in capacity_grids(result):
            show(grid, console, self.wide)
        bound = bound_note(result["bound"])
        gain = f"Gain over {result['reference']}, same traces, with a 95 % paired interval."
        limit = AT_LIMIT if any(set(row["bounds"]) != {"exact"} for row in result["rows"]) else ""
        for line in filter(None, (*result["notes"], came_of_asked(result["points"]), bound, gain, limit)):
            console.print(Text(line))
        print(f"written: {self.json or self.out / 'capacity.json'}")

    def _search(self, search: Search, progress: OnProgress) -> dict[str, Any]:
        progress("getting ready", 0, 0)
        result = search_capacity(
            search,
            workers=default_workers() if self.workers is None else self.workers,
            cells_path=self.out / "cells.jsonl",
            resume=self.resume,
            on_cell=partial(progress, "cells"),
        )
        for path in filter(None, (self.out / "capacity.json", self.json)):
            write_atomically(path, json_text(result))
        return result


def _rates(row: dict[str, Any], lowest: float) -> tuple[str, str]:
    """The mean capacity and those of the seeds, and that they are bounds where the search found no more."""
    bounds = row["bounds"]
    if row["limited_by"] == [NOBODY_SERVED] and not any(row["by_seed"]):
        return "-", "-"
    if set(bounds) == {"below"}:
        return f"< {lowest:.3f}", f"< {lowest:.2f}"
    low, high = min(row["by_seed"]), max(row["by_seed"])
    first = f"{low:.2f}" if low else f"< {lowest:.2f}"
    last = f"{'>= ' if 'above' in bounds else ''}{high:.2f}"
    # A capacity below the lowest rate counts as 0, which is a lower bound, too.
    return (
        f"{'' if set(bounds) == {'exact'} else '>= '}{row['capacity']['mean']:.3f}",
        last if low == high else f"{first} to {last}",
    )


def _gain(row: dict[str, Any]) -> str:
    """The gain with its interval; at a limit of the search only what it is at least or at most."""
    gain, bound = row["gain"], row["gain_bound"]
    if not gain or bound == "open":
        return "-"
    text = f"{gain['mean']:+.1%}"
    if bound != "exact":
        return f"{'>=' if bound == 'at least' else '<='} {text}"
    return text if gain["low"] is None else f"{text} [{gain['low']:+.1%}, {gain['high']:+.1%}]"


AT_LIMIT = "At the limits of the search: capacities are bounds (>=, <), gains too, and have no interval (-: not known)."


def came_of_asked(points: list[dict[str, Any]]) -> str:
    """One line: how far the realised arrival rates of the runs were from the asked ones; "" where there are none."""
    off = [point["arrival_rate"] / point["rate"] - 1.0 for point in points if point["arrival_rate"]]
    if not off:
        return ""
    mean, low, high = sum(off) / len(off), min(off), max(off)
    return f"Rates are asked ones; arrivals came {mean:+.1%} off on average ({low:+.1%} to {high:+.1%} over the runs)."


def capacity_grids(result: dict[str, Any]) -> list[Grid]:
    """The capacities, one table per criterion."""
    grids = []
    search = result["config"]
    lowest = (search["rates"] or search["bisection"])[0]
    for criterion in CRITERIA:
        rows = []
        for row in (row for row in result["rows"] if row["criterion"] == criterion):
            limits = "; ".join(row["limited_by"]) or "-"
            rows.append((row["policy"], *_rates(row, lowest), _gain(row), limits))
        title = f"Capacity, {criterion} criterion: {CRITERION_TEXT[criterion]}"
        grids.append(Grid(HEADS, [Part(rows, title)]))
    return grids
