"""A comparison of routers as tables, for the terminal, for a page and as one HTML file."""

import base64
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from rich.text import Text

from agents.evaluation.statistics import Interval
from agents.reporting.grid import Cell, Grid, Head, Part, figure, markdown_table
from agents.reporting.page import page
from agents.reporting.route_plots import MOST_LINES, captions, load_text
from agents.studies.route.records import Cell as Run
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
_OF_REPLICAS = (
    ("requests", "requests", 1.0, ".0f"),
    ("busy_share", "busy, %", 100.0, ".1f"),
    ("kv_use", "KV use, %", 100.0, ".1f"),
    ("mean_ttft_ms", "TTFT mean, s", 1e-3, ".3f"),
    ("p99_ttft_ms", "TTFT p99, s", 1e-3, ".2f"),
    ("max_waiting", "longest queue", 1.0, ".0f"),
)
"""Columns of replicas: field, title, scale, format."""
HEADLINE = ("median_ttft_ms", "mean_ttft_ms", "p99_ttft_ms", "slo_attainment", "slo_goodput")
"""Differences that the tables show."""


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
    return f"{load_text(load)} in front of {result.fleet}"


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
        (
            load_text(load),
            router,
            *(_difference(found[load, router, key], scale, form) for key, _, scale, form in shown),
        )
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
    ends = [Head(title, "number", 1 if name == "p99_ttft_ms" else 0) for name, title, _, _ in _OF_REPLICAS]
    rows = [
        (
            load_text(row.load),
            row.router,
            *(_range(result, row, name, scale, form) for name, _, scale, form in _OF_REPLICAS),
        )
        for row in result.standings
    ]
    heads = (Head("load", "name"), Head("router", "name"), *ends)
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


def each_replica_grid(result: Routes) -> Grid | None:
    """Each replica at the load in the middle, a part for each router; None where there are many."""
    if result.replicas > MOST_LINES:
        return None
    heads = (Head("replica"), Head("policy", "name"), *(Head(title) for _, title, _, _ in _OF_REPLICAS))
    parts = [
        Part(list(_replica_rows(result.of(router.label, result.watched))), router.label) for router in result.routers
    ]
    return Grid(heads, parts, f"Each replica at {load_text(result.watched)}, means over {result.seeds} seeds")


def _replica_rows(cells: Sequence[Run]) -> Iterator[tuple[Cell, ...]]:
    for j, first in enumerate(cells[0].replicas):
        means = (
            (float(np.mean([getattr(cell.replicas[j], name) for cell in cells])) * scale, form)
            for name, _, scale, form in _OF_REPLICAS
        )
        yield (str(j), first.policy, *(figure(mean, form) for mean, form in means))


def _grids(result: Routes) -> list[Grid]:
    """The tables of a page."""
    grids = (fleet_grid(result), difference_grid(result), replica_grid(result), each_replica_grid(result))
    return [grid for grid in grids if grid]


def markdown_text(result: Routes) -> str:
    """The tables for a page."""
    titled = ((part, [head.title for head in grid.heads]) for grid in _grids(result) for part in grid.parts)
    return "\n\n".join(f"{part.title}:\n\n{markdown_table(heads, part.rows)}" for part, heads in titled) + "\n"


def html_text(result: Routes, images: Mapping[str, bytes]) -> str:
    """The comparison as one HTML file without outside references.

    Args:
        result: of `run_routing`.
        images: of `agents.reporting.route_plots.draw_all`.

    Raises:
        InputError: what draws reports is not installed.
    """
    texts = captions(result)
    plots = [(texts[name], base64.b64encode(image).decode()) for name, image in images.items()]
    return page("route.html", result=result, grids=_grids(result), plots=plots, notes=list(remark_lines(result)))
