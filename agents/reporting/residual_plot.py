"""The plot of a fitted profile: seconds of its batches, predicted against measured."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from agents.reporting.plot_style import GRID, LIMIT, new_figure, style_of
from agents.reporting.plots import png
from engine.device.fitting import Point, predicted
from engine.device.latency import LatencyModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_residuals(model: LatencyModel, points: Sequence[Point]) -> bytes:
    """Relative error of each point against its measured duration, one colour a set, as PNG."""
    figure: Figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
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
    axes.grid(True, **GRID)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    return png(figure)
