"""Plots of an evaluation as PNG files (matplotlib without a display)."""

import io
import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from agents.evaluation.looks import Behaviour
from agents.evaluation.result import CDF_SHARES, Comparison
from agents.reporting.grid import folded
from agents.reporting.plot_style import (
    ABOVE,
    LABEL_CHARACTERS,
    LIMIT,
    add_legend,
    new_figure,
    plain,
    plain_log_ticks,
    style_of,
)  # fmt: skip
from agents.reporting.tables import load_label, load_rate
from agents.work.progress import OnProgress, unseen
from engine.runs.report import MEDIAN_TTFT_LIMIT_S, P99_TTFT_LIMIT_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_ITERATIONS = 30
"""A mean over fewer iterations is not drawn."""
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


def _has_one_load(result: Comparison) -> bool:
    """Whether policies stand below each other with their names, since there is no axis of loads."""
    return len(result.setting.loads) == 1


def _panels(result: Comparison, count: int = 2) -> "tuple[Figure, list[Axes]]":
    """A figure with panels side by side, four at most, as high as the names of the policies need."""
    columns = min(4, count)
    rows = -(-count // columns)
    if not _has_one_load(result):
        figure = new_figure(4.5 * columns, 3.8 * rows)
        return figure, _used(list(figure.subplots(rows, columns, squeeze=False).flat), count)
    names = [folded(policy, LABEL_CHARACTERS) for policy in result.labels]
    lines = sum(name.count("\n") + 1 for name in names)
    figure = new_figure(4.2 * columns + 1.5, rows * max(2.4, 1.2 + 0.24 * lines))
    panels = _used(list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat), count)
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return figure, panels


def _used(panels: "list[Axes]", count: int) -> "list[Axes]":
    """The first panels; the others are not shown."""
    for axes in panels[count:]:
        axes.set_visible(False)
    return panels[:count]


def _against_load(axes: "Axes", result: Comparison, key: str, scale: float) -> None:
    """Mean over seeds of one number against the load, the 95 % interval as a band; of one load, a row per policy."""
    loads = result.setting.loads
    rates = np.array([load_rate(result, load) for load in loads])
    for index, policy in enumerate(result.labels):
        rows = [row[key] for row in result.of(policy)]
        mean, low, high = scale * np.array([(row.mean, row.low, row.high) for row in rows]).T
        style = style_of(index)
        if _has_one_load(result):
            reach = np.nan_to_num(np.array([mean - low, high - mean]))
            axes.errorbar(mean, [index], xerr=reach, capsize=3, markersize=6, **(style | {"linestyle": "none"}))
            continue
        axes.plot(rates, mean, label=policy, markersize=4.5, linewidth=1.6, **style)
        if len(result.labels) <= ABOVE:  # the bands of many hide each other
            axes.fill_between(rates, np.maximum(low, 0.0), high, color=style["color"], alpha=0.12, linewidth=0)
    axes.set_xlabel(load_label(result, loads[0]) if _has_one_load(result) else "arrival rate, requests/s")
    plain(axes)


def _span(axes: "Axes", result: Comparison, low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """Limits of the axis of values, set where given."""
    if _has_one_load(result):
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
    if _has_one_load(result):
        axes.axvline(value, **LIMIT)
        axes.annotate(text, (value, 0.01), **NOTE, **_UPRIGHT)
    else:
        axes.axhline(value, **LIMIT)
        axes.annotate(text, (0.01, value), **NOTE, **_LYING)


def _finish(figure: "Figure", axes: "Axes", result: Comparison) -> "Figure":
    if not _has_one_load(result):
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
    axis: Literal["x", "y"] = "x" if _has_one_load(result) else "y"
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
    if not _has_one_load(result):
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


def _batches(axes: "Axes", line: dict[str, np.ndarray], key: str, bottom: np.ndarray, colour: str) -> None:
    """Tokens of each iteration as boxes from its start to its end, in one artist: hundreds of bars take seconds."""
    from matplotlib.collections import PolyCollection

    start, end, top = line["start_s"], line["start_s"] + line["duration_s"], bottom + line[key]
    corners = np.array([[start, start, end, end], [bottom, top, top, bottom]]).transpose(2, 1, 0)
    name = key.replace("_", " ")
    axes.add_collection(PolyCollection(list(corners), facecolor=colour, edgecolor="white", linewidth=0.15, label=name))


def _draw_timeline(axes: "Axes", policy: str, line: dict[str, np.ndarray]) -> None:
    from matplotlib.ticker import MaxNLocator

    decode = line["decode_tokens"]
    _batches(axes, line, "decode_tokens", np.zeros(len(decode)), "#0072b2")
    _batches(axes, line, "prefill_tokens", decode, "#e69f00")
    axes.set_ylim(0.0, max(1.0, 1.05 * float((decode + line["prefill_tokens"]).max(initial=0))))
    axes.set_title(folded(policy, 100), loc="left", fontsize=9)
    axes.spines[["top"]].set_visible(False)
    queue = axes.twinx()
    queue.step(line["start_s"] + line["duration_s"], line["waiting"], where="post", color="#000000", linewidth=1.0)
    queue.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    queue.set_ylim(0, max(4, 1.2 * float(line["waiting"].max(initial=0))))
    queue.spines[["top"]].set_visible(False)
    for side in (axes, queue):
        side.tick_params(labelsize=8)


def plot_timeline(result: Comparison) -> "Figure":
    """The batches of the last seconds of the first minute: tokens of each iteration, and the waiting queue."""
    looks = result.windows.policies if result.windows else {}
    starts = [look.timeline.start_s for look in looks.values() if look.timeline.start_s]
    since = min((start[0] for start in starts), default=0.0)
    until = max((start[-1] for start in starts), default=1.0)
    lines = [folded(policy, 100).count("\n") for policy in looks]
    figure = new_figure(9.0, 0.8 + (1.55 if len(looks) <= 8 else 1.25) * len(looks) + 0.17 * sum(lines))
    panels = figure.subplots(len(looks), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (policy, look) in zip(panels, looks.items(), strict=True):
        _draw_timeline(axes, policy, look.timeline.columns())
    panels[0].set_xlim(since, max(until, since + 1e-3))
    panels[-1].set_xlabel("time, s (boxes: tokens of an iteration; line: requests waiting, right axis)", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def plot_behaviour(result: Comparison) -> "Figure":
    """What the policies do: batches and held decodes against KV use, deadlines used and overtaking against load."""
    tiers = result.cells[0].tiers
    columns = 2 if len(tiers) <= 5 else 4
    height = -(-(3 + len(tiers)) // columns)
    figure = new_figure(4.5 * columns, 3.3 * height)
    batch, held, overtaken, *more = figure.subplots(height, columns).flat
    for index, policy in enumerate(result.labels):
        _draw_behaviour([batch, held, overtaken, *more], result, policy, index)
    titles = ["batches with prompts, mean s", "decodes that such a batch holds back, %"]
    gaps = [f"mean gap of tier {name}, % of the deadline" for name in tiers]
    titles += ["prompts present that came earlier, %", *gaps]
    for axes, title in zip((batch, held, overtaken, *more), titles, strict=False):
        axes.set_title(folded(title, 50), loc="left", fontsize=10)
        axes.set_xlabel("KV blocks in use, %" if axes in (batch, held) else "arrival rate, requests/s")
        top = axes.dataLim.ymax
        axes.set_ylim(0.0, 1.08 * top if 0.0 < top < np.inf else None)
        plain(axes)
    spare = more[len(tiers)] if len(more) > len(tiers) else None
    _used(more, len(tiers))
    add_legend(figure, batch, spare)
    return figure


def _draw_behaviour(panels: "list[Axes]", result: Comparison, policy: str, index: int) -> None:
    """The lines of one policy: against KV use in the first two panels, against load in the others."""
    batch, held, overtaken, *more = panels
    style = style_of(index) | {"linewidth": 1.6, "markersize": 4.5, "label": policy}
    mine = [row for row in result.behaviour if row.policy == policy]
    use, batch_s, held_share = _over_loads(mine)
    batch.plot(use, batch_s, **style)
    held.plot(use, 100.0 * held_share, **style)
    rates = [load_rate(result, row.load) for row in mine]
    overtaken.plot(rates, _percent([row.overtaken_share for row in mine]), **style)
    for axes, name in zip(more, result.cells[0].tiers, strict=False):
        axes.plot(rates, _percent([row.deadline_share.get(name) for row in mine]), **style)


def _percent(shares: list[float | None]) -> np.ndarray:
    return 100.0 * np.array([np.nan if share is None else share for share in shares])


def _over_loads(rows: Sequence[Behaviour]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KV use (%), batch seconds and share of decodes held, over all loads, where there were iterations enough."""
    count = np.array([row.iterations for row in rows], np.float64)
    total = count.sum(0)
    means = []
    for of in (attrgetter("batch_s"), attrgetter("held_share")):
        values = np.array([[np.nan if x is None else x for x in of(row)] for row in rows])
        means.append(np.nansum(count * np.nan_to_num(values), 0) / np.maximum(total, 1.0))
    enough = total >= LEAST_ITERATIONS
    use = (np.arange(len(total)) + 0.5) * 100.0 / len(total)
    return use[enough], means[0][enough], means[1][enough]


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
