"""Plots of an evaluation as PNG files (matplotlib without a display)."""

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from agents.evaluation.result import CDF_SHARES, Comparison
from agents.reporting.grid import folded
from agents.reporting.look_plots import plot_behaviour, plot_timeline
from agents.reporting.plot_style import (
    ABOVE,
    LIMIT,
    add_legend,
    has_one_load,
    name_rows,
    new_figure,
    plain,
    plain_log_ticks,
    rows_height,
    style_of,
    used,
)
from agents.reporting.tables import load_label, load_rate
from agents.work.progress import OnProgress, unseen
from engine.runs.report import MEDIAN_TTFT_LIMIT_S, P99_TTFT_LIMIT_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTE: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "color": "#555555"}
"""Words beside a line."""
_UPRIGHT: dict[str, Any] = {
    "xycoords": ("data", "axes fraction"), "xytext": (-2, 2), "ha": "right", "rotation": 90,
    "zorder": 0.5,  # below the marks of the policies
}  # fmt: skip
_LYING: dict[str, Any] = {
    "xycoords": ("axes fraction", "data"), "xytext": (0, 2), "ha": "left", "zorder": 3,
    "bbox": {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
}  # fmt: skip
"""The words at a limit, where values run along the axis below and where they run along that on the left."""


def _panels(result: Comparison, count: int = 2) -> "tuple[Figure, list[Axes]]":
    """A figure with panels side by side, four at most, as high as the names of the policies need."""
    columns = min(4, count)
    rows = -(-count // columns)
    if not has_one_load(result):
        figure = new_figure(4.5 * columns, 3.8 * rows)
        return figure, used(list(figure.subplots(rows, columns, squeeze=False).flat), count)
    figure = new_figure(4.2 * columns + 1.5, rows * max(2.4, rows_height(result.labels)))
    panels = used(list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat), count)
    name_rows(panels[0], result.labels)
    return figure, panels


def _against_load(axes: "Axes", result: Comparison, key: str, scale: float) -> None:
    """Mean over seeds of one number against the load, the 95 % interval as a band; of one load, a row per policy."""
    loads = result.setting.loads
    rates = np.array([load_rate(result, load) for load in loads])
    for index, policy in enumerate(result.labels):
        rows = [row[key] for row in result.of(policy)]
        mean, low, high = scale * np.array([(row.mean, row.low, row.high) for row in rows]).T
        style = style_of(index)
        if has_one_load(result):
            reach = np.nan_to_num(np.array([mean - low, high - mean]))
            axes.errorbar(mean, [index], xerr=reach, capsize=3, markersize=6, **(style | {"linestyle": "none"}))
            continue
        axes.plot(rates, mean, label=policy, markersize=4.5, linewidth=1.6, **style)
        if len(result.labels) <= ABOVE:  # the bands of many hide each other
            axes.fill_between(rates, np.maximum(low, 0.0), high, color=style["color"], alpha=0.12, linewidth=0)
    axes.set_xlabel(load_label(result, loads[0]) if has_one_load(result) else "arrival rate, requests/s")
    plain(axes)


def _span(axes: "Axes", result: Comparison, low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """Limits of the axis of values, set where given."""
    if has_one_load(result):
        axes.set_xlim(low, high)
        return axes.get_xlim()
    axes.set_ylim(low, high)
    return axes.get_ylim()


def _limit(axes: "Axes", result: Comparison, value: float, text: str) -> None:
    """A dashed line at a limit, if the data comes anywhere near it."""
    bottom, top = _span(axes, result)
    if value > 2.0 * top:
        return
    _span(axes, result, bottom, max(top, 1.15 * value))
    if has_one_load(result):
        axes.axvline(value, **LIMIT)
        axes.annotate(text, (value, 0.01), **NOTE, **_UPRIGHT)
    else:
        axes.axhline(value, **LIMIT)
        axes.annotate(text, (0.01, value), **NOTE, **_LYING)


def _finish(figure: "Figure", axes: "Axes", result: Comparison) -> "Figure":
    if not has_one_load(result):
        add_legend(figure, axes)
    return figure


def plot_ttft(result: Comparison) -> "Figure":
    """Median and 99th percentile of TTFT against load, with the limits of the capacity criteria."""
    figure, (left, right) = _panels(result)
    for axes, key, title in ((left, "median_ttft_ms", "median TTFT, s"), (right, "p99_ttft_ms", "p99 TTFT, s")):
        _against_load(axes, result, key, 1e-3)
        _fit_scale(axes, result, key)
        axes.set_title(title, loc="left", fontsize=10)
    _limit(left, result, MEDIAN_TTFT_LIMIT_S, "capacity: median < 0.5 s")
    _limit(right, result, P99_TTFT_LIMIT_S, "sound capacity: p99 < 10 s")
    return _finish(figure, left, result)


def _fit_scale(axes: "Axes", result: Comparison, key: str) -> None:
    """From zero where that shows the differences, logarithmic where one value would hide the others."""
    known = [row[key].mean for row in result.summary if row[key].mean > 0.0]
    if not (known and max(known) > 8.0 * min(known)):
        _from_zero(axes, result)
        return
    axis: Literal["x", "y"] = "x" if has_one_load(result) else "y"
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    plain_log_ticks(axes, axis)
    # A band may reach down to zero: the means alone set the range.
    _span(axes, result, 0.6 * min(known) / 1000.0, 1.8 * max(known) / 1000.0)


def _from_zero(axes: "Axes", result: Comparison) -> None:
    """Room from zero to above the largest value."""
    top = _span(axes, result)[1]
    if top > 0.0:
        _span(axes, result, 0.0, 1.08 * top)


def plot_tbt(result: Comparison) -> "Figure":
    """99th percentile of the gaps of each tier against load, with the tier's deadline."""
    cell = result.cells[0]
    figure, panels = _panels(result, len(cell.tiers))
    for axes, name in zip(panels, cell.tiers, strict=True):
        _against_load(axes, result, f"tiers.{name}.p99_itl_ms", 1e-3)
        _from_zero(axes, result)
        deadline = cell.number(f"tiers.{name}.tbt_deadline_ms") / 1000.0
        _limit(axes, result, deadline, f"deadline {deadline:g} s")
        axes.set_title(folded(f"p99 TBT of tier {name}, s", 44), loc="left", fontsize=10)
    return _finish(figure, panels[0], result)


def plot_goodput(result: Comparison) -> "Figure":
    """Goodput and SLO attainment against load; the dashed line is what arrives."""
    figure, (left, right) = _panels(result)
    _against_load(left, result, "slo_goodput", 1.0)
    left.set_title("goodput, requests/s", loc="left", fontsize=10)
    _from_zero(left, result)
    if not has_one_load(result):
        _draw_offered(left, [load_rate(result, load) for load in result.setting.loads])
    _against_load(right, result, "slo_attainment", 100.0)
    _span(right, result, 0.0, 104.0)
    right.set_title("requests within every deadline, %", loc="left", fontsize=10)
    return _finish(figure, left, result)


def _draw_offered(axes: "Axes", rates: list[float]) -> None:
    """The line on which everything that arrives is served in time."""
    axes.plot(rates, rates, **LIMIT)
    inside = [rate for rate in rates if rate <= axes.get_ylim()[1]]
    if inside:  # goodput may stay so far below that the line leaves the panel before its middle
        at = min(rates[len(rates) // 2], max(inside))
        side: dict[str, Any] = {"xytext": (-4, 4), "ha": "right"} if at > rates[0] else {"xytext": (4, 4), "ha": "left"}
        axes.annotate("offered", (at, at), **NOTE, **side)


def plot_cdf(result: Comparison) -> "Figure":
    """Distribution of TTFT at the middle load: share of the requests beyond each value, mean over seeds."""
    loads = result.setting.loads
    load = loads[len(loads) // 2]
    figure = new_figure(9.0, 4.0)
    left, right = figure.subplots(1, 2)
    for index, policy in enumerate(result.labels):
        cells = [c for c in result.cells if c.policy == policy and c.load == load and c.ttft_quantiles_ms]
        if not cells:
            continue
        ttft = np.mean([cell.ttft_quantiles_ms for cell in cells], axis=0) / 1000.0
        style = style_of(index) | {"linewidth": 1.4, "markersize": 4.0}
        left.plot(ttft, CDF_SHARES * 100.0, label=policy, markevery=(7 * index % 25, 25), **style)
        above = np.maximum(1.0 - CDF_SHARES, 5e-4) * 100.0
        right.plot(ttft, above, markevery=(7 * index % 25, 25), **style)
    right.set_yscale("log")
    plain_log_ticks(right)
    left.set_title(f"share with TTFT up to x, %, at {load_label(result, load)}", loc="left", fontsize=10)
    right.set_title("share with TTFT above x, % (the tail)", loc="left", fontsize=10)
    for axes in (left, right):
        axes.set_xscale("log")
        plain_log_ticks(axes, "x")
        axes.set_xlabel("TTFT, s")
        plain(axes)
    add_legend(figure, left)
    return figure


PLOTS: dict[str, Callable[[Comparison], "Figure"]] = {
    "ttft": plot_ttft,
    "tbt": plot_tbt,
    "goodput": plot_goodput,
    "cdf": plot_cdf,
    "timeline": plot_timeline,
    "behaviour": plot_behaviour,
}
"""Plots by name, in the order of the report."""


def png(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG file, the same for the same figure."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name in a script that the font lacks: a box
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def draw_all(result: Comparison, progress: OnProgress = unseen) -> dict[str, bytes]:
    """Every plot that the result has data for, as PNG by name."""
    needs = {"timeline": result.windows and result.windows.policies, "behaviour": result.behaviour}
    names, images = [name for name in PLOTS if needs.get(name, True)], {}
    for done, name in enumerate(names):
        progress("plots", done, len(names))
        images[name] = png(PLOTS[name](result))
    return images
