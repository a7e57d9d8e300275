"""The plot of learning curves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from agents.reporting.plot_style import LIMIT, LINES, add_legend, new_figure, plain, style_of, used
from agents.reporting.plots import png
from agents.studies.curves import Line, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4


def plot_curves(panels: Sequence[Panel]) -> bytes:
    """A panel for each: thin lines are trainings, thick ones the mean of their seeds, as PNG."""
    columns = min(COLUMNS, len(panels))
    height = -(-len(panels) // columns)
    canvas = new_figure(3.2 * columns + 0.4, 2.7 * height + 0.3)
    places = list(canvas.subplots(height, columns, squeeze=False).flat)
    kinds = list(dict.fromkeys(line.kind for panel in panels for line in panel.lines))
    for axes, panel in zip(used(places, len(panels)), panels, strict=True):
        _draw_panel(axes, panel, kinds)
    add_legend(canvas, places[0])
    return png(canvas)


def _draw_panel(axes: "Axes", panel: Panel, kinds: Sequence[str]) -> None:
    for index, kind in enumerate(kinds):
        _draw_kind(axes, [line for line in panel.lines if line.kind == kind], index)
    for turn, (name, value) in enumerate(panel.levels.items()):
        axes.axhline(value, **(LIMIT | {"linestyle": LINES[1 + turn % 2]}))
        axes.annotate(name, (0.99, value), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom")
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_xlabel("decisions, millions", fontsize=9)
    axes.set_ylabel(panel.unit, fontsize=8)
    axes.set_xlim(left=0.0)
    plain(axes)


def _draw_kind(axes: "Axes", lines: Sequence[Line], index: int) -> None:
    """The trainings of one kind, thin, and their mean where all have a value."""
    style = {key: value for key, value in style_of(index).items() if key in ("color", "marker")}
    at: dict[int, list[float]] = {}
    for line in lines:
        axes.plot(np.array(line.decisions) / 1e6, line.values, color=style["color"], linewidth=0.6, alpha=0.5)
        for step, value in zip(line.decisions, line.values, strict=True):
            at.setdefault(step, []).append(value)
    means = {step: np.mean(values) for step, values in sorted(at.items()) if len(values) == len(lines)}
    if means:
        label = f"{lines[0].kind} (mean of {len(lines)})" if len(lines) > 1 else lines[0].kind
        axes.plot(np.array([*means]) / 1e6, [*means.values()], label=label, linewidth=1.8, markersize=3.5, **style)
