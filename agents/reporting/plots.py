"""Plots of an evaluation as PNG files (matplotlib without a display)."""

import io
from collections.abc import Callable
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.evaluation.evaluate import CDF_SHARES
from agents.progress import OnProgress, unseen
from agents.reporting.tables import Result, load_label, load_rate
from engine.report import MEDIAN_TTFT_LIMIT_S, P99_TTFT_LIMIT_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
"""Okabe and Ito's palette, told apart by people with any colour vision; markers repeat the distinction."""
MARKERS = "osD^vPX*"
GRID: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.6}
LIMIT: dict[str, Any] = {"color": "#666666", "linewidth": 1.0, "linestyle": (0, (4, 3))}
DPI = 150
LEAST_ITERATIONS = 30
"""A mean over fewer iterations is not drawn."""


def style_of(index: int) -> dict[str, Any]:
    """Colour and marker of the n-th line."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size (inches)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _policies(result: Result) -> list[str]:
    return [policy["label"] for policy in result["policies"]]


def _tiers(result: Result) -> dict[str, Any]:
    tiers: dict[str, Any] = result["cells"][0]["report"]["tiers"]
    return tiers


def _against_load(axes: "Axes", result: Result, key: str, scale: float) -> None:
    """Mean over seeds of one number against the load, the 95 % interval as a band."""
    loads = result["config"]["loads"]
    rates = np.array([load_rate(result, load) for load in loads])
    for index, policy in enumerate(_policies(result)):
        rows = [row["metrics"][key] for row in result["summary"] if row["policy"] == policy]
        mean, low, high = (
            np.array([np.nan if row[part] is None else row[part] * scale for row in rows])
            for part in ("mean", "low", "high")
        )
        if len(loads) > 1:
            axes.plot(rates, mean, label=policy, markersize=4.5, linewidth=1.6, **style_of(index))
            axes.fill_between(
                rates, np.maximum(low, 0.0), high, color=style_of(index)["color"], alpha=0.15, linewidth=0
            )
            axes.set_xlabel("arrival rate, requests/s")
        else:
            reach = np.nan_to_num(np.array([mean - low, high - mean]))
            axes.errorbar([index], mean, reach, label=policy, capsize=4, linestyle="none", **style_of(index))
            axes.set_xlim(-0.6, len(_policies(result)) - 0.4)
            axes.set_xticks([])
            axes.set_xlabel(load_label(result, loads[0]))
    axes.grid(True, **GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _limit(axes: "Axes", value: float, text: str) -> None:
    """A dashed line at a limit, if the data comes anywhere near it."""
    bottom, top = axes.get_ylim()
    if value > 2.0 * top:
        return
    axes.set_ylim(bottom, max(top, 1.15 * value))
    axes.axhline(value, **LIMIT)
    axes.annotate(
        text,
        (0.01, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=7.5,
        color="#555555",
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
    )


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 6), frameon=False)


def plot_ttft(result: Result) -> "Figure":
    """Median and 99th percentile of TTFT against load, with the limits of the capacity criteria."""
    figure = new_figure(9.0, 3.8)
    left, right = figure.subplots(1, 2)
    for axes, key, title in ((left, "median_ttft_ms", "median TTFT, s"), (right, "p99_ttft_ms", "p99 TTFT, s")):
        _against_load(axes, result, key, 1e-3)
        _fit_scale(axes, result, key)
        axes.set_title(title, loc="left", fontsize=10)
    _limit(left, MEDIAN_TTFT_LIMIT_S, "capacity: median < 0.5 s")
    _limit(right, P99_TTFT_LIMIT_S, "sound capacity: p99 < 10 s")
    _legend(figure, left)
    return figure


def _fit_scale(axes: "Axes", result: Result, key: str) -> None:
    """From zero where that shows the differences, logarithmic where one value would hide the others."""
    means = [row["metrics"][key]["mean"] for row in result["summary"]]
    known = [mean for mean in means if mean]
    if known and max(known) > 8.0 * min(known):
        axes.set_yscale("log")
        plain_log_ticks(axes)
        # A band may reach down to zero: the means alone set the range.
        axes.set_ylim(0.6 * min(known) / 1000.0, 1.8 * max(known) / 1000.0)
    else:
        _from_zero(axes)


def _from_zero(axes: "Axes") -> None:
    """Room from zero to above the largest value."""
    axes.set_ylim(0.0, 1.08 * axes.get_ylim()[1])


def plain_log_ticks(axes: "Axes", axis: str = "y") -> None:
    """Plain numbers at 1, 2, 5 of each decade instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    scale = axes.yaxis if axis == "y" else axes.xaxis
    scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    scale.set_minor_formatter(NullFormatter())


def plot_tbt(result: Result) -> "Figure":
    """99th percentile of the gaps of each tier against load, with the tier's deadline."""
    tiers = _tiers(result)
    columns = min(4, max(2, len(tiers)))
    lines = -(-len(tiers) // columns)
    figure = new_figure(4.5 * columns, 3.8 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, tier) in zip(panels, tiers.items(), strict=False):
        _against_load(axes, result, f"tiers.{name}.p99_itl_ms", 1e-3)
        _from_zero(axes)
        deadline = tier["tbt_deadline_ms"] / 1000.0
        _limit(axes, deadline, f"deadline {deadline:g} s")
        axes.set_title(f"p99 TBT of tier {name}, s", loc="left", fontsize=10)
    for axes in panels[len(tiers) :]:
        axes.set_visible(False)
    _legend(figure, panels[0])
    return figure


def plot_goodput(result: Result) -> "Figure":
    """Goodput and SLO attainment against load; the dashed line is what arrives."""
    figure = new_figure(9.0, 3.8)
    left, right = figure.subplots(1, 2)
    _against_load(left, result, "slo_goodput", 1.0)
    left.set_title("goodput, requests/s", loc="left", fontsize=10)
    _from_zero(left)
    rates = [load_rate(result, load) for load in result["config"]["loads"]]
    if len(rates) > 1:
        left.plot(rates, rates, **LIMIT)
        middle = len(rates) // 2
        left.annotate(
            "offered", (rates[middle], rates[middle]), xytext=(-4, 4), textcoords="offset points",
            ha="right", fontsize=7.5, color="#555555",
        )  # fmt: skip
    _against_load(right, result, "slo_attainment", 100.0)
    right.set_ylim(0.0, 104.0)
    right.set_title("requests that met TTFT and every TBT deadline, %", loc="left", fontsize=10)
    _legend(figure, left)
    return figure


def plot_cdf(result: Result) -> "Figure":
    """Distribution of TTFT at the middle load: share of the requests beyond each value, mean over seeds."""
    loads = result["config"]["loads"]
    load = loads[len(loads) // 2]
    figure = new_figure(9.0, 4.0)
    left, right = figure.subplots(1, 2)
    for index, policy in enumerate(_policies(result)):
        cells = [c for c in result["cells"] if c["policy"] == policy and c["load"] == load and c["ttft_quantiles_ms"]]
        if not cells:
            continue
        ttft = np.mean([cell["ttft_quantiles_ms"] for cell in cells], axis=0) / 1000.0
        colour = style_of(index)["color"]
        left.plot(ttft, CDF_SHARES * 100.0, label=policy, color=colour, linewidth=1.6)
        right.plot(ttft, np.maximum(1.0 - CDF_SHARES, 5e-4) * 100.0, color=colour, linewidth=1.6)
    right.set_yscale("log")
    plain_log_ticks(right)
    left.set_title(f"share with TTFT up to x, %, at {load_label(result, load)}", loc="left", fontsize=10)
    right.set_title("share with TTFT above x, % (the tail)", loc="left", fontsize=10)
    for axes in (left, right):
        axes.set_xscale("log")
        plain_log_ticks(axes, "x")
        axes.set_xlabel("TTFT, s")
        axes.grid(True, **GRID)
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, left)
    return figure


def plot_timeline(result: Result) -> "Figure":
    """The batches of the last seconds of the first minute: tokens of each iteration, and the waiting queue."""
    from matplotlib.ticker import MaxNLocator

    looks = result["windows"]["policies"]
    since = min(seen["timeline"]["start_s"][0] for seen in looks.values() if seen["timeline"]["start_s"])
    until = max(seen["timeline"]["start_s"][-1] for seen in looks.values() if seen["timeline"]["start_s"])
    figure = new_figure(9.0, 0.6 + 1.55 * len(looks))
    panels = figure.subplots(len(looks), 1, squeeze=False)[:, 0]
    for axes, (policy, seen) in zip(panels, looks.items(), strict=True):
        line = {key: np.array(values) for key, values in seen["timeline"].items()}
        bar = {
            "x": line["start_s"],
            "width": line["duration_s"],
            "align": "edge",
            "edgecolor": "white",
            "linewidth": 0.15,
        }
        axes.bar(height=line["decode_tokens"], color="#0072b2", label="decode tokens", **bar)
        axes.bar(
            height=line["prefill_tokens"], bottom=line["decode_tokens"], color="#e69f00", label="prefill tokens", **bar
        )
        axes.set_title(policy, loc="left", fontsize=9)
        axes.spines[["top"]].set_visible(False)
        queue = axes.twinx()
        ends = line["start_s"] + line["duration_s"]
        queue.step(ends, line["waiting"], where="post", color="#000000", linewidth=1.0)
        queue.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlim(since, until)
        queue.set_ylim(0, max(4, 1.2 * float(line["waiting"].max(initial=0))))
        queue.spines[["top"]].set_visible(False)
        for side in (axes, queue):
            side.tick_params(labelsize=8)
    panels[-1].set_xlabel("time, s (bars: tokens of an iteration; line: requests waiting, right axis)", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


TIER_LINES = (("-", "solid"), (":", "dotted"), ("--", "dashed"), ("-.", "dash-dotted"))
"""Lines of the tiers where one panel shows them all; a fifth tier begins anew."""


def plot_behaviour(result: Result) -> "Figure":
    """What the policies do: batches and held decodes against KV use, deadlines used and overtaking against load."""
    figure = new_figure(9.0, 6.6)
    (batch, held), (deadline, overtaken) = figure.subplots(2, 2)
    rows, tiers = result["behaviour"], _tiers(result)
    for index, policy in enumerate(_policies(result)):
        mine, style = [row for row in rows if row["policy"] == policy], style_of(index)
        style |= {"linewidth": 1.6, "markersize": 4.5}
        use, batch_s, held_share = _over_loads(mine)
        batch.plot(use, batch_s, label=policy, **style)
        held.plot(use, 100.0 * held_share, **style)
        rates = [load_rate(result, row["load"]) for row in mine]
        for name, (line, _) in zip(tiers, cycle(TIER_LINES), strict=False):
            shares = [np.nan if row["deadline_share"][name] is None else row["deadline_share"][name] for row in mine]
            deadline.plot(rates, 100.0 * np.array(shares), **(style | {"linestyle": line}))
        shares = [np.nan if row["overtaken_share"] is None else row["overtaken_share"] for row in mine]
        overtaken.plot(rates, 100.0 * np.array(shares), **style)
    batch.set_title("batches with prompts, mean s", loc="left", fontsize=10)
    held.set_title("decodes that such a batch holds back, %", loc="left", fontsize=10)
    names = ", ".join(f"{name} {kind}" for name, kind in zip(tiers, (word for _, word in TIER_LINES), strict=False))
    deadline.set_title(f"mean gap, % of the deadline ({names})", loc="left", fontsize=10)
    overtaken.set_title("prompts present that came earlier, %", loc="left", fontsize=10)
    for axes, label in ((batch, "KV blocks in use, %"), (held, "KV blocks in use, %"), (deadline, ""), (overtaken, "")):
        axes.set_xlabel(label or "arrival rate, requests/s")
        axes.set_ylim(bottom=0.0)
        axes.grid(True, **GRID)
        axes.spines[["top", "right"]].set_visible(False)
    _legend(figure, batch)
    return figure


def _over_loads(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KV use (%), batch seconds and share of decodes held, over all loads, where there were iterations enough."""
    count = np.array([row["iterations"] for row in rows], np.float64)
    total = count.sum(0)
    means = []
    for key in ("batch_s", "held_share"):
        values = np.array([[np.nan if x is None else x for x in row[key]] for row in rows])
        means.append(np.nansum(count * np.nan_to_num(values), 0) / np.maximum(total, 1.0))
    enough = total >= LEAST_ITERATIONS
    use = (np.arange(len(total)) + 0.5) * 100.0 / len(total)
    return use[enough], means[0][enough], means[1][enough]


PLOTS: dict[str, Callable[[Result], "Figure"]] = {
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
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def draw_all(result: Result, progress: OnProgress = unseen) -> dict[str, bytes]:
    """Every plot that the result has data for, as PNG by name."""
    needs = {"timeline": result["windows"].get("policies"), "behaviour": result.get("behaviour")}
    names, images = [name for name in PLOTS if needs.get(name, True)], {}
    for done, name in enumerate(names):
        progress("plots", done, len(names))
        images[name] = png(PLOTS[name](result))
    return images
