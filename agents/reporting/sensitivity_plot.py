"""The plot of a sensitivity study: what each policy gains against the error of its predictions."""

from typing import TYPE_CHECKING, Any

from agents.reporting.plots import GRID, LIMIT, new_figure, png, style_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_sensitivity(result: dict[str, Any]) -> bytes:
    """Mean latency relative to the reference, one panel per load, channels in their order, as PNG."""
    loads = result["setting"]["loads"]
    figure: Figure = new_figure(3.4 * len(loads) + 1.0, 3.9)
    panels = figure.subplots(1, len(loads), squeeze=False, sharey=True)[0]
    labels = [f"{row['channel']}\ntau {row['tau']:.2f}" for row in result["channels"]]
    policies = list(dict.fromkeys(row["policy"] for row in result["rows"]))
    for axes, load in zip(panels, loads, strict=True):
        for index, policy in enumerate(policies):
            rows = [r for r in result["rows"] if r["policy"] == policy and r["load"] == load]
            values = [100 * row["mean_e2e_s"]["relative"] for row in rows]
            axes.plot(range(len(rows)), values, label=policy, linewidth=1.6, markersize=4.5, **style_of(index))
        axes.axhline(0.0, **LIMIT)
        axes.set_title("recorded arrivals" if load is None else f"{load:g} requests/s", fontsize=10)
        axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=7)
        axes.grid(True, **GRID)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"mean latency against {result['setting']['reference']}, %")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(len(names), 6), frameon=False)
    return png(figure)
