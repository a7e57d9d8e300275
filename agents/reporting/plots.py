"""Plots of an evaluation as PNG files (matplotlib without a display)."""

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.evaluation.result import CDF_SHARES, Comparison
from agents.reporting.grid import folded
from agents.reporting.lines import draw_means, fit_scale, from_zero, new_panels, span
from agents.reporting.look_plots import plot_behaviour, plot_timeline
from agents.reporting.plot_style import LIMIT, add_legend, has_one_load, new_figure, plain, plain_log_ticks, style_of
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
    """Panels for so many numbers of its policies."""
    return new_panels(result.labels, has_one_load(result), count)


def _against_load(axes: "Axes", result: Comparison, key: str, scale: float) -> None:
    """Mean over seeds of one number against the load, the 95 % interval as a band; of one load, a row per policy."""
    loads = result.setting.loads
    rates = [load_rate(result, load) for load in loads]
    values = {name: list(zip(rates, [row[key] for row in result.of(name)], strict=True)) for name in result.labels}
    draw_means(axes, values, has_one_load(result), scale)
    axes.set_xlabel(load_label(result, loads[0]) if has_one_load(result) else "arrival rate, requests/s")


def _limit(axes: "Axes", result: Comparison, value: float, text: str) -> None:
    """A dashed line at a limit, if the data comes anywhere near it."""
    bottom, top = span(axes, has_one_load(result))
    if value > 2.0 * top:
        return
    span(axes, has_one_load(result), bottom, max(top, 1.15 * value))
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
        fit_scale(axes, has_one_load(result), [row[key].mean / 1000.0 for row in result.summary])
        axes.set_title(title, loc="left", fontsize=10)
    _limit(left, result, MEDIAN_TTFT_LIMIT_S, "capacity: median < 0.5 s")
    _limit(right, result, P99_TTFT_LIMIT_S, "sound capacity: p99 < 10 s")
    return _finish(figure, left, result)


def plot_tbt(result: Comparison) -> "Figure":
    """99th percentile of the gaps of each tier against load, with the tier's deadline."""
    cell = result.cells[0]
    figure, panels = _panels(result, len(cell.tiers))
    for axes, name in zip(panels, cell.tiers, strict=True):
        _against_load(axes, result, f"tiers.{name}.p99_itl_ms", 1e-3)
        from_zero(axes, has_one_load(result))
        deadline = cell.number(f"tiers.{name}.tbt_deadline_ms") / 1000.0
        _limit(axes, result, deadline, f"deadline {deadline:g} s")
        axes.set_title(folded(f"p99 TBT of tier {name}, s", 44), loc="left", fontsize=10)
    return _finish(figure, panels[0], result)


def plot_goodput(result: Comparison) -> "Figure":
    """Goodput and SLO attainment against load; the dashed line is what arrives."""
    figure, (left, right) = _panels(result)
    _against_load(left, result, "slo_goodput", 1.0)
    left.set_title("goodput, requests/s", loc="left", fontsize=10)
    from_zero(left, has_one_load(result))
    if not has_one_load(result):
        _draw_offered(left, [load_rate(result, load) for load in result.setting.loads])
    _against_load(right, result, "slo_attainment", 100.0)
    span(right, has_one_load(result), 0.0, 104.0)
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
