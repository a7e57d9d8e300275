"""Plots of the fit of a profile and of two studies: residuals, sensitivity to predictions, means against waits."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agents.evaluation.result import Comparison
from agents.reporting.grid import figure
from agents.reporting.plot_style import GRID, LIMIT, add_legend, new_figure, plain_log_ticks, style_of
from agents.reporting.plots import png
from agents.reporting.tables import load_label
from agents.studies.sensitivity import Sensitivity
from agents.work.files import check_writable, write_atomically
from engine.device.fitting import Point, predicted
from engine.device.latency import LatencyModel
from engine.extras import need

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def check_plot(path: Path | None) -> None:
    """Find out before a long run that its plot could not be drawn or written; None asks for none.

    Raises:
        InputError: there is no matplotlib, or the place cannot be written.
    """
    if path is not None:
        check_writable(path)
        need("report", "plot")


def write_plot(path: Path | None, draw: Callable[[], bytes]) -> None:
    """Draw a plot and write it as PNG; None asks for none.

    Raises:
        InputError: the place cannot be written.
    """
    if path is not None:
        write_atomically(path, draw())


def _frame(axes: "Axes") -> None:
    """A light grid, no frame above and on the right."""
    axes.grid(True, **GRID)
    axes.spines[["top", "right"]].set_visible(False)


def plot_residuals(model: LatencyModel, points: Sequence[Point]) -> bytes:
    """Relative error of each point against its measured duration, one colour a set, as PNG."""
    canvas: Figure = new_figure(7.5, 4.2)
    axes = canvas.subplots()
    for index, kind in enumerate(dict.fromkeys(p.kind for p in points)):
        chosen = [p for p in points if p.kind == kind]
        seconds = np.array([p.seconds for p in chosen])
        error = 100.0 * (predicted(model, chosen) / seconds - 1.0)
        style = {key: value for key, value in style_of(index).items() if key in ("color", "marker")}
        axes.plot(1000.0 * seconds, error, label=kind, markersize=4.5, linestyle="none", **style)
    axes.axhline(0.0, **LIMIT)
    axes.set_xscale("log")
    axes.set_xlabel("measured, ms")
    axes.set_ylabel("predicted - measured, % of measured")
    axes.set_title(f"{model.name}: {len(points)} batches", fontsize=10)
    _frame(axes)
    canvas.legend(loc="outside right upper", frameon=False)
    return png(canvas)


def plot_sensitivity(result: Sensitivity) -> bytes:
    """Mean latency relative to the reference, one panel per load, channels in their order, as PNG."""
    loads = result.loads
    canvas: Figure = new_figure(3.4 * len(loads) + 1.0, 3.9)
    panels = canvas.subplots(1, len(loads), squeeze=False, sharey=True)[0]
    labels = [f"{row.channel}\ntau {figure(row.tau, '.2f')}" for row in result.channels]
    policies = list(dict.fromkeys(row.policy for row in result.rows))
    for axes, load in zip(panels, loads, strict=True):
        for index, policy in enumerate(policies):
            values = _percent(result, policy, load)
            axes.plot(range(len(values)), values, label=policy, linewidth=1.6, markersize=4.5, **style_of(index))
        axes.axhline(0.0, **LIMIT)
        axes.set_title("recorded arrivals" if load is None else f"{load:g} requests/s", fontsize=10)
        axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
        _frame(axes)
    panels[0].set_ylabel(f"mean latency against {result.reference}, %")
    add_legend(canvas, panels[0])
    return png(canvas)


def _percent(result: Sensitivity, policy: str, load: float | None) -> list[float]:
    """The relative mean latency with each channel, nan where there is none."""
    shares = [row.mean_e2e_s.relative for row in result.rows if (row.policy, row.load) == (policy, load)]
    return [math.nan if share is None else 100 * share for share in shares]


def plot_tradeoff(result: Comparison) -> bytes:
    """One panel per load, one line per policy, a point per setting (tokens/s beside it), as PNG."""
    loads = result.setting.loads
    canvas: Figure = new_figure(3.6 * len(loads) + 0.8, 4.0)
    panels = canvas.subplots(1, len(loads), squeeze=False)[0]
    families = list(dict.fromkeys(_family(row.policy) for row in result.summary))
    for axes, load in zip(panels, loads, strict=True):
        for index, family in enumerate(families):
            rows = [row for row in result.at(load) if _family(row.policy) == family]
            mean = [row["mean_ttft_ms"].mean / 1000.0 for row in rows]
            wait = [row["max_wait_s"].mean for row in rows]
            axes.plot(mean, wait, label=family, linewidth=1.4, markersize=4.5, **style_of(index))
            for x, y, row in zip(mean, wait, rows, strict=True):
                ageing = row.policy.rpartition("=")[2]
                axes.annotate(
                    ageing,
                    (x, y),
                    xytext=(4, 4),
                    textcoords="offset points",
                    fontsize=7,
                    color=style_of(index)["color"],
                )
        axes.set_yscale("log")
        plain_log_ticks(axes)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(load_label(result, load), loc="left", fontsize=10)
        axes.set_xlabel("mean TTFT, s")
        _frame(axes)
    panels[0].set_ylabel("longest wait, s (numbers: ageing, tokens/s)")
    add_legend(canvas, panels[0])
    return png(canvas)


def _family(spec: str) -> str:
    """The policy without its setting, by its short name."""
    whole = spec.rpartition("ageing=")[0].rstrip(",:")
    return whole if len(whole) < 40 else whole.partition(":")[0]
