"""The plot of a starvation study: the longest wait against the mean TTFT, along the settings of the ageing knob."""

from typing import TYPE_CHECKING, Any

from agents.reporting.plot_style import GRID, add_legend, new_figure, plain_log_ticks, style_of
from agents.reporting.plots import png
from agents.reporting.tables import load_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_tradeoff(result: dict[str, Any]) -> bytes:
    """One panel per load, one line per policy, a point per setting (tokens/s beside it), as PNG."""
    loads = result["config"]["loads"]
    figure: Figure = new_figure(3.6 * len(loads) + 0.8, 4.0)
    panels = figure.subplots(1, len(loads), squeeze=False)[0]
    families = list(dict.fromkeys(_family(row["policy"]) for row in result["summary"]))
    for axes, load in zip(panels, loads, strict=True):
        for index, family in enumerate(families):
            rows = [r for r in result["summary"] if r["load"] == load and _family(r["policy"]) == family]
            mean = [row["metrics"]["mean_ttft_ms"]["mean"] / 1000.0 for row in rows]
            wait = [row["metrics"]["max_wait_s"]["mean"] for row in rows]
            axes.plot(mean, wait, label=family, linewidth=1.4, markersize=4.5, **style_of(index))
            for x, y, row in zip(mean, wait, rows, strict=True):
                ageing = row["policy"].rpartition("=")[2]
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
        axes.grid(True, **GRID)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("longest wait, s (numbers: ageing, tokens/s)")
    add_legend(figure, panels[0])
    return png(figure)


def _family(spec: str) -> str:
    """The policy without its setting, by its short name."""
    whole = spec.rpartition("ageing=")[0].rstrip(",:")
    return whole if len(whole) < 40 else whole.partition(":")[0]
