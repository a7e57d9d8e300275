"""A comparison of routers as tables, for the terminal, for a page and as one HTML file."""

from collections.abc import Iterator, Sequence

import numpy as np
from rich.text import Text

from agents.evaluation.statistics import Interval
from agents.reporting.grid import Cell, Grid, Head, Part, figure, markdown_table
from agents.reporting.page import page
from agents.studies.route.records import Difference, Routes, Standing

_COLOURS = {"stable": "green", "starving": "yellow", "late": "yellow", "saturated": "red", "unknown": ""}
_STYLES = {"better": "green", "worse": "red"}
_SHOWN = (
    ("median_ttft_ms", "TTFT median, s", 1e-3, ".3f", 0),
    ("mean_ttft_ms", "TTFT mean, s", 1e-3, ".3f", 0),
    ("p99_ttft_ms", "TTFT p99, s", 1e-3, ".2f", 0),
    ("max_wait_s", "max wait, s", 1.0, ".1f", 3),
    ("slo_attainment", "SLO met, %", 100.0, ".1f", 0),
    ("slo_goodput", "goodput, req/s", 1.0, ".3f", 2),
    ("jain_replicas", "Jain of replicas", 1.0, ".3f", 1),
    ("imbalance", "imbalance", 1.0, ".2f", 4),
)
"""Columns: key, title, scale, format, order in which a narrow terminal leaves them out."""
HEADLINE = ("median_ttft_ms", "mean_ttft_ms", "p99_ttft_ms", "slo_attainment", "slo_goodput")
"""Differences that the tables show."""


def _load(load: float | None) -> str:
    return "recorded times" if load is None else f"{load:g} requests/s"


def fleet_grid(result: Routes) -> Grid:
    """The fleet's numbers of every router, a part for each load."""
    tiers = result.cells[0].tiers
    numbers = [Head(title, "number", order) for _, title, _, _, order in _SHOWN]
    heads = (Head("router", "name"), *numbers, *(Head(f"TBT p99 {t}, s", "number", 5) for t in tiers))
    parts = [Part([_row(row, tiers) for row in result.at(load)], _title(result, load)) for load in result.loads]
    caption = (
        f"Means over {result.seeds} seeds. Jain of replicas: of their mean TTFT, 1 where it is the same at all; "
        "imbalance: requests of the replica that got most, over those of the mean one"
    )
    return Grid((*heads, Head("verdict", "prose")), parts, caption)


def _title(result: Routes, load: float | None) -> str:
    return f"{_load(load)} in front of {result.fleet}"


def _row(row: Standing, tiers: Sequence[str]) -> tuple[Cell, ...]:
    cells = [figure(row.metrics[key].mean * scale, form) for key, _, scale, form, _ in _SHOWN]
    gaps = [figure(row.metrics[f"tiers.{tier}.p99_itl_ms"].mean / 1000.0, ".3f") for tier in tiers]
    return (row.router, *cells, *gaps, Text(row.verdict, style=_COLOURS[row.verdict]))


def difference_grid(result: Routes) -> Grid | None:
    """Paired differences to the first router, a row for each load and router; None where there is only one."""
    if not result.differences:
        return None
    shown = [(key, title, scale, form) for key, title, scale, form, _ in _SHOWN if key in HEADLINE]
    found = {(row.load, row.router, row.metric): row for row in result.differences}
    rows: list[tuple[Cell, ...]] = [
        (_load(load), router, *(_difference(found[load, router, key], scale, form) for key, _, scale, form in shown))
        for load, router in dict.fromkeys((row.load, row.router) for row in result.differences)
    ]
    heads = (Head("load", "name"), Head("router", "name"), *(Head(title) for _, title, _, _ in shown))
    return Grid(heads, [Part(rows, f"Difference to {result.reference}, same arrivals, 95 % interval")])


def _difference(row: Difference, scale: float, form: str) -> Text:
    text = figure(row.difference.mean * scale, f"+{form}")
    if row.relative is not None:
        text += f" ({row.relative:+.0%})"
    return Text(text + _ends(row.difference, scale, form), style=_STYLES.get(row.judgement, ""))


def _ends(value: Interval, scale: float, form: str) -> str:
    low, high = (figure(end * scale, f"+{form}") for end in (value.low, value.high))
    return "" if "-" in (low, high) else f" [{low}, {high}]"


def replica_grid(result: Routes) -> Grid:
    """How far the replicas are apart: the least and the most of them, means over the seeds."""
    heads = (
        *(Head("load", "name"), Head("router", "name"), Head("requests"), Head("busy, %")),
        *(Head("KV use, %"), Head("TTFT mean, s"), Head("TTFT p99, s", "number", 1), Head("longest queue")),
    )
    names = (("requests", 1.0, ".0f"), ("busy_share", 100.0, ".1f"), ("kv_use", 100.0, ".1f"))
    times = (("mean_ttft_ms", 1e-3, ".3f"), ("p99_ttft_ms", 1e-3, ".2f"), ("max_waiting", 1.0, ".0f"))
    rows = [
        (_load(row.load), row.router, *(_range(result, row, *column) for column in (*names, *times)))
        for row in result.standings
    ]
    return Grid(heads, [Part(rows, "Replicas, the least to the most of them")])


def _range(result: Routes, row: Standing, name: str, scale: float, form: str) -> str:
    """Least and most of a number among the replicas of a run, means over the seeds."""
    cells = result.of(row.router, row.load)
    values = [[getattr(replica, name) for replica in cell.replicas] for cell in cells]
    low, high = (float(np.mean([end(run) for run in values])) * scale for end in (np.nanmin, np.nanmax))
    return f"{figure(low, form)} - {figure(high, form)}"


def remark_lines(result: Routes) -> Iterator[str]:
    """What else there is to say."""
    yield from result.notes


def markdown_text(result: Routes) -> str:
    """The tables for a page."""
    grids = [grid for grid in (fleet_grid(result), difference_grid(result), replica_grid(result)) if grid]
    titled = ((part, [head.title for head in grid.heads]) for grid in grids for part in grid.parts)
    return "\n\n".join(f"{part.title}:\n\n{markdown_table(heads, part.rows)}" for part, heads in titled) + "\n"


def html_text(result: Routes) -> str:
    """The comparison as one HTML file without outside references.

    Raises:
        InputError: what draws reports is not installed.
    """
    grids = [grid for grid in (fleet_grid(result), difference_grid(result), replica_grid(result)) if grid]
    return page("route.html", result=result, grids=grids, notes=list(remark_lines(result)))
