"""The plot of a sensitivity study: what each policy gains against the error of its predictions."""

import math
from typing import TYPE_CHECKING, Any

from agents.reporting.grid import figure
from agents.reporting.plot_style import GRID, LIMIT, add_legend, new_figure, style_of
from agents.reporting.plots import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_sensitivity(result: dict[str, Any]) -> bytes:
    """Mean latency relative to the reference, one panel per load, channels in their order, as PNG."""
    loads = result["setting"]["loads"]
    canvas: Figure = new_figure(3.4 * len(loads) + 1.0, 3.9)
    panels = canvas.subplots(1, len(loads), squeeze=False, sharey=True)[0]
    labels = [f"{row['channel']}\ntau {figure(row['tau'], '.2f')}" for row in result["channels"]]
    policies = list(dict.fromkeys(row["policy"] for row in result["rows"]))
    for axes, load in zip(panels, loads, strict=True):
        for index, policy in enumerate(policies):
            rows = [r for r in result["rows"] if r["policy"] == policy and r["load"] == load]
            shares = [row["mean_e2e_s"]["relative"] for row in rows]
            values = [math.nan if share is None else 100 * share for share in shares]
            axes.plot(range(len(rows)), values, label=policy, linewidth=1.6, markersize=4.5, **style_of(index))
        axes.axhline(0.0, **LIMIT)
        axes.set_title("recorded arrivals" if load is None else f"{load:g} requests/s", fontsize=10)
        axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
        axes.grid(True, **GRID)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"mean latency against {result['setting']['reference']}, %")
    add_legend(canvas, panels[0])
    return png(canvas)
