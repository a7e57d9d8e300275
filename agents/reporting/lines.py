"""Means with intervals against a number such as the load: a line for each name, or at one place a row for each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from agents.evaluation.statistics import Interval
from agents.reporting.plot_style import (
    ABOVE,
    name_rows,
    new_figure,
    plain,
    plain_log_ticks,
    rows_height,
    style_of,
    used,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Mean = tuple[float, Interval]
"""A place on the axis below, and a mean with its interval."""


def new_panels(names: Sequence[str], in_rows: bool, count: int = 2) -> "tuple[Figure, list[Axes]]":
    """A figure with panels side by side, four at most, as high as rows with these names need."""
    columns = min(4, count)
    rows = -(-count // columns)
    if not in_rows:
        figure = new_figure(4.5 * columns, 3.8 * rows)
        return figure, used(list(figure.subplots(rows, columns, squeeze=False).flat), count)
    figure = new_figure(4.2 * columns + 1.5, rows * max(2.4, rows_height(names)))
    panels = used(list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat), count)
    name_rows(panels[0], names)
    return figure, panels


def draw_means(axes: "Axes", values: Mapping[str, Sequence[Mean]], in_rows: bool, scale: float) -> None:
    """Means with their 95 % intervals as bands; in rows, of one place.

    Args:
        axes: the panel.
        values: by name.
        in_rows: a row for each name instead of a line.
        scale: factor on the values.
    """
    for index, (name, own) in enumerate(values.items()):
        places = [place for place, _ in own]
        mean, low, high = scale * np.array([(one.mean, one.low, one.high) for _, one in own]).T
        style = style_of(index)
        if in_rows:
            reach = np.nan_to_num(np.array([mean - low, high - mean]))
            axes.errorbar(mean, [index], xerr=reach, capsize=3, markersize=6, **(style | {"linestyle": "none"}))
            continue
        axes.plot(places, mean, label=name, markersize=4.5, linewidth=1.6, **style)
        if len(values) <= ABOVE:  # the bands of many hide each other
            axes.fill_between(places, np.maximum(low, 0.0), high, color=style["color"], alpha=0.12, linewidth=0)
    plain(axes)


def span(axes: "Axes", in_rows: bool, low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """Limits of the axis of values, set where given."""
    if in_rows:
        axes.set_xlim(low, high)
        return axes.get_xlim()
    axes.set_ylim(low, high)
    return axes.get_ylim()


def from_zero(axes: "Axes", in_rows: bool) -> None:
    """Room from zero to above the largest value."""
    top = span(axes, in_rows)[1]
    if top > 0.0:
        span(axes, in_rows, 0.0, 1.08 * top)


def fit_scale(axes: "Axes", in_rows: bool, means: Sequence[float]) -> None:
    """From zero where that shows the differences, logarithmic where one of the means would hide the others."""
    known = [mean for mean in means if mean > 0.0]
    if not (known and max(known) > 8.0 * min(known)):
        from_zero(axes, in_rows)
        return
    axis: Literal["x", "y"] = "x" if in_rows else "y"
    (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    plain_log_ticks(axes, axis)
    # A band may reach down to zero: the means alone set the range.
    span(axes, in_rows, 0.6 * min(known), 1.8 * max(known))
