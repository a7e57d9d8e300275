"""A run of a real server beside its simulation, as a plot and as an HTML page."""

import base64
from typing import TYPE_CHECKING

import numpy as np

from agents.device.against import Replay
from agents.reporting.against_tables import SERIES, grids, origin, remarks
from agents.reporting.page import page
from agents.reporting.plot_style import COLOURS, add_legend, new_figure, plain
from agents.reporting.plots import png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_replay(replay: Replay) -> bytes:
    """Requests running and waiting and tokens per second, measured and simulated, against time, as PNG."""
    canvas: Figure = new_figure(10.0, 6.2)
    panels = canvas.subplots(2, 2, sharex=True)
    t = np.array(replay.t_s)
    for axes, (name, title) in zip(panels.flat, SERIES.items(), strict=True):
        series = replay.seconds[name]
        _line(axes, t, series.measured, "measured", COLOURS[0])
        _line(axes, t, series.simulated, "simulated", COLOURS[1])
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylim(bottom=0.0)
        plain(axes)
    canvas.supxlabel(f"seconds from the first arrival; simulated: {replay.policy} on {replay.profile}", fontsize=9)
    add_legend(canvas, panels[0, 0])
    return png(canvas)


def _line(axes: "Axes", t: np.ndarray, values: list[float] | None, label: str, colour: str) -> None:
    """One side of a series, where there is one."""
    if values is not None:
        axes.plot(t, values, label=label, color=colour, linewidth=1.1)


def html_of(replay: Replay) -> str:
    """Tables and plot as one HTML file without outside references."""
    return page(
        "against.html",
        replay=replay,
        origin=list(origin(replay)),
        grids=list(grids(replay)),
        remarks=list(remarks(replay)),
        plot=base64.b64encode(plot_replay(replay)).decode(),
    )
