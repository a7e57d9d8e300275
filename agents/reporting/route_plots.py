"""Plots of a comparison of routers: TTFT against load and against the age of reports, requests at each replica."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from agents.evaluation.statistics import Interval
from agents.reporting.grid import folded
from agents.reporting.lines import Mean, draw_means, fit_scale, new_panels
from agents.reporting.plot_style import COLOURS, LIMIT, add_legend, new_figure, plain, used
from agents.reporting.plots import NOTE, png
from agents.studies.route.presence import Presence
from agents.studies.route.records import Routes
from engine.extras import missing
from engine.spec import Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LINES = 8
"""Replicas of which each has a line of its own; of more, the range and the mean are drawn."""

LIKE = 8
"""Panels have a common scale where the fullest one has at most so many times as much as the emptiest one."""


def load_text(load: float | None) -> str:
    """How a load of the fleet is called."""
    return "recorded times" if load is None else f"{load:g} requests/s"


def _metric(result: Routes, router: str, load: float | None, key: str) -> Interval:
    return next(row.metrics[key] for row in result.at(load) if row.router == router)


def plot_load(result: Routes) -> "Figure":
    """Median, mean and 99th percentile of TTFT of the fleet against load."""
    names, in_rows = [router.label for router in result.routers], len(result.loads) == 1
    figure, panels = new_panels(names, in_rows, 3)
    for axes, which in zip(panels, ("median", "mean", "p99"), strict=True):
        key = f"{which}_ttft_ms"
        values = {
            name: [(load or math.nan, _metric(result, name, load, key)) for load in result.loads] for name in names
        }
        _draw(axes, values, in_rows)
        axes.set_title(f"{which} TTFT, s", loc="left", fontsize=10)
        axes.set_xlabel(load_text(result.loads[0]) if in_rows else "arrival rate of the fleet, requests/s")
    if not in_rows:
        add_legend(figure, panels[0])
    return figure


def _draw(axes: "Axes", values: Mapping[str, Sequence[Mean]], in_rows: bool) -> None:
    """Times in ms as seconds, on a scale that shows all of them."""
    draw_means(axes, values, in_rows, 1e-3)
    fit_scale(axes, in_rows, [one.mean / 1000.0 for own in values.values() for _, one in own])


def by_age(result: Routes) -> dict[str, list[tuple[float, str]]]:
    """Routers that were run with several ages of reports: ages and labels, by the spec without the age."""
    found: dict[str, list[tuple[float, str]]] = {}
    for router in result.routers:
        spec = Spec.parse(router.label)
        others = ",".join(part for part in spec.words if not part.startswith("age="))
        found.setdefault(str(Spec(spec.name, others)), []).append((router.age_s, router.label))
    return {name: sorted(own) for name, own in found.items() if len({age for age, _ in own}) > 1}


def plot_age(result: Routes) -> "Figure":
    """Mean TTFT against the age of the reports, a panel for each load; dashed: what routers are compared with."""
    groups = by_age(result)
    figure, panels = new_panels(list(groups), False, len(result.loads))
    for axes, load in zip(panels, result.loads, strict=True):
        values = {
            name: [(age, _metric(result, label, load, "mean_ttft_ms")) for age, label in routers]
            for name, routers in groups.items()
        }
        _draw(axes, values, False)
        base = _metric(result, result.reference, load, "mean_ttft_ms").mean / 1000.0
        axes.axhline(base, **LIMIT)
        axes.annotate(
            folded(result.reference, 30), (0.01, base), xycoords=("axes fraction", "data"), xytext=(0, 2), **NOTE
        )
        axes.set_title(f"mean TTFT, s, at {load_text(load)}", loc="left", fontsize=10)
        axes.set_xlabel("seconds from one report to the next")
    add_legend(figure, panels[0])
    return figure


def presences(result: Routes) -> dict[str, Presence]:
    """The runs of which each replica was watched, by router."""
    return {cell.router: cell.presence for cell in result.cells if cell.presence is not None}


def plot_presence(result: Routes) -> "Figure":
    """Requests at each replica over one run, a panel for each router."""
    shown = presences(result)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    tops = {router: max(1, *map(max, presence.counts)) for router, presence in shown.items()}
    is_alike = max(tops.values()) <= LIKE * min(tops.values())
    figure = new_figure(4.5 * columns, 0.6 + 2.2 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=is_alike).flat)
    for axes, (router, presence) in zip(used(panels, len(shown)), shown.items(), strict=True):
        _draw_presence(axes, presence)
        axes.set_title(folded(router, 50), loc="left", fontsize=9)
        plain(axes)
        axes.set_ylim(0.0, 1.05 * (max(tops.values()) if is_alike else tops[router]))
    for axes in panels[max(0, len(shown) - columns) : len(shown)]:
        axes.set_xlabel("time, s", fontsize=9)
        axes.tick_params(labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=min(len(labels), 8), frameon=False, fontsize=8)
    return figure


def _draw_presence(axes: "Axes", presence: Presence) -> None:
    counts = np.array(presence.counts)
    times = presence.step_s * np.arange(counts.shape[1])
    if len(counts) > MOST_LINES:
        axes.fill_between(times, counts.min(0), counts.max(0), color=COLOURS[0], alpha=0.25, label="all replicas")
        axes.plot(times, counts.mean(0), color=COLOURS[0], linewidth=1.2, label="mean replica")
        return
    for j, own in enumerate(counts):
        axes.plot(times, own, color=COLOURS[j], linewidth=1.0, label=f"replica {j}")


PLOTS: dict[str, Callable[[Routes], "Figure"]] = {"load": plot_load, "age": plot_age, "presence": plot_presence}
"""Plots by name, in the order of the report."""


def captions(result: Routes) -> dict[str, str]:
    """What each plot shows of which there is anything to show, by name."""
    found = {"load": "TTFT of the whole fleet, means over the seeds; bands and bars are 95 % intervals."}
    if by_age(result):
        found["age"] = "Mean TTFT against how old reports of the replicas get; a router's own counts are exact."
    if presences(result):
        found["presence"] = (
            f"Requests at each replica while the requests of seed 0 come, at {load_text(result.watched)}."
        )
    return found


def draw_all(result: Routes) -> dict[str, bytes]:
    """Every plot that the result has data for, as PNG by name; none where what draws is not installed."""
    if missing("report") is not None:
        return {}
    return {name: png(PLOTS[name](result)) for name in captions(result)}
