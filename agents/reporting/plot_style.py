"""How plots look: a style for each policy, the same in every plot of a report, and legends with room for long names."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from agents.evaluation.result import Comparison
from agents.reporting.grid import folded
from engine.extras import need

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")
"""Okabe and Ito's palette, told apart by people with any colour vision; markers repeat the distinction."""
MARKERS = "osD^vPX*"
LINES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)))
"""Of the first eight policies, the next eight and the eight after these."""
GRID: dict[str, Any] = {"color": "#dddddd", "linewidth": 0.6}
LIMIT: dict[str, Any] = {"color": "#666666", "linewidth": 1.0, "linestyle": (0, (4, 3))}
DPI = 150
LABEL_CHARACTERS = 34
"""Longer names are broken in legends and beside axes."""
ABOVE = 8
"""With more lines than this the legend stands on the right instead of above."""
CHARACTER, LINE = 0.073, 0.185
"""Width of a character and height of a line of a legend, inches."""


def style_of(index: int) -> dict[str, Any]:
    """Colour, marker and line of the n-th policy: 24 combinations, then with other markers."""
    colour, turn = index % len(COLOURS), index // len(COLOURS)
    style = {
        "color": COLOURS[colour],
        "marker": MARKERS[(colour + 3 * turn) % len(MARKERS)],
        "linestyle": LINES[turn % len(LINES)],
    }
    return style | ({"markerfacecolor": "white"} if turn % 2 else {})


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size (inches)."""
    need("report", "plot")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def has_one_load(result: Comparison) -> bool:
    """Whether policies stand below each other with their names, since there is no axis of loads."""
    return len(result.setting.loads) == 1


def name_rows(axes: "Axes", policies: Sequence[str]) -> None:
    """A row for each policy, the first on top."""
    axes.set_yticks(range(len(policies)), [folded(policy, LABEL_CHARACTERS) for policy in policies], fontsize=9)
    axes.set_ylim(len(policies) - 0.5, -0.5)


def rows_height(policies: Sequence[str]) -> float:
    """Inches that a panel needs for the names of its rows."""
    return 1.2 + 0.24 * sum(folded(policy, LABEL_CHARACTERS).count("\n") + 1 for policy in policies)


def used(panels: "list[Axes]", count: int) -> "list[Axes]":
    """The first panels; the others are not shown."""
    for axes in panels[count:]:
        axes.set_visible(False)
    return panels[:count]


def plain(axes: "Axes") -> None:
    """A light grid behind the data, no frame; where no line has a point, a word that says so."""
    import numpy as np

    if not any(np.isfinite(np.asarray(line.get_ydata(), float) + line.get_xdata()).any() for line in axes.lines):
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", va="center", color="#555555")
        axes.set_xticks([])
    axes.grid(True, **GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def plain_log_ticks(axes: "Axes", axis: Literal["x", "y"] = "y") -> None:
    """Plain numbers at 1, 2, 5 of each decade instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    scale = axes.yaxis if axis == "y" else axes.xaxis
    scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    scale.set_minor_formatter(NullFormatter())


def add_legend(figure: "Figure", axes: "Axes", room: "Axes | None" = None) -> None:
    """The legend of all panels: in an unused one, above where it is short, else on the right of a wider figure."""
    handles, names = axes.get_legend_handles_labels()
    labels = [folded(name, LABEL_CHARACTERS) for name in names]
    width, height = figure.get_size_inches()
    rows = [line for label in labels for line in label.split("\n")]
    lines, each = len(rows), CHARACTER * max(map(len, rows), default=0) + 0.55
    if room is not None and lines * LINE < height / 3 and each < width / 2:
        room.set_visible(True)
        room.axis("off")
        room.legend(handles, labels, loc="center left", frameon=False, fontsize=9, handlelength=3.0)
    elif len(labels) <= ABOVE and lines == len(labels):
        columns = max(1, min(len(labels), int(width / each), 6))
        figure.set_size_inches(width, height + LINE * (-(-len(labels) // columns) - 1))
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    else:
        figure.set_size_inches(width + each, max(height, LINE * lines + 0.5))
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5, handlelength=3.0)
