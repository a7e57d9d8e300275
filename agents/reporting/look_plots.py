"""Plots of what the policies of an evaluation do: their batches over some seconds, and their habits."""

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from agents.evaluation.looks import Behaviour
from agents.evaluation.result import Comparison
from agents.reporting.grid import folded
from agents.reporting.plot_style import (
    add_legend,
    has_one_load,
    name_rows,
    new_figure,
    plain,
    rows_height,
    style_of,
    used,
)
from agents.reporting.tables import load_label, load_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_ITERATIONS = 30
"""A mean over fewer iterations is not drawn."""


def _batches(axes: "Axes", line: dict[str, np.ndarray], key: str, bottom: np.ndarray, colour: str) -> None:
    """Tokens of each iteration as boxes from its start to its end, in one artist: hundreds of bars take seconds."""
    from matplotlib.collections import PolyCollection

    start, end, top = line["start_s"], line["start_s"] + line["duration_s"], bottom + line[key]
    corners = np.array([[start, start, end, end], [bottom, top, top, bottom]]).transpose(2, 1, 0)
    name = key.replace("_", " ")
    axes.add_collection(PolyCollection(list(corners), facecolor=colour, edgecolor="white", linewidth=0.15, label=name))


def _draw_timeline(axes: "Axes", policy: str, line: dict[str, np.ndarray]) -> None:
    from matplotlib.ticker import MaxNLocator

    decode = line["decode_tokens"]
    _batches(axes, line, "decode_tokens", np.zeros(len(decode)), "#0072b2")
    _batches(axes, line, "prefill_tokens", decode, "#e69f00")
    axes.set_ylim(0.0, max(1.0, 1.05 * float((decode + line["prefill_tokens"]).max(initial=0))))
    axes.set_title(folded(policy, 100), loc="left", fontsize=9)
    axes.spines[["top"]].set_visible(False)
    queue = axes.twinx()
    queue.step(line["start_s"] + line["duration_s"], line["waiting"], where="post", color="#000000", linewidth=1.0)
    queue.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    queue.set_ylim(0, max(4, 1.2 * float(line["waiting"].max(initial=0))))
    queue.spines[["top"]].set_visible(False)
    for side in (axes, queue):
        side.tick_params(labelsize=8)


def plot_timeline(result: Comparison) -> "Figure":
    """The batches of the last seconds of the first minute: tokens of each iteration, and the waiting queue."""
    looks = result.windows.policies if result.windows else {}
    starts = [look.timeline.start_s for look in looks.values() if look.timeline.start_s]
    since = min((start[0] for start in starts), default=0.0)
    until = max((start[-1] for start in starts), default=1.0)
    lines = [folded(policy, 100).count("\n") for policy in looks]
    figure = new_figure(9.0, 0.8 + (1.55 if len(looks) <= 8 else 1.25) * len(looks) + 0.17 * sum(lines))
    panels = figure.subplots(len(looks), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (policy, look) in zip(panels, looks.items(), strict=True):
        _draw_timeline(axes, policy, look.timeline.columns())
    panels[0].set_xlim(since, max(until, since + 1e-3))
    panels[-1].set_xlabel("time, s (boxes: tokens of an iteration; line: requests waiting, right axis)", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def plot_behaviour(result: Comparison) -> "Figure":
    """What the policies do: batches and held decodes against KV use, deadlines used and overtaking against load."""
    tiers = result.cells[0].tiers
    columns = 2 if len(tiers) <= 5 else 4
    height = -(-(3 + len(tiers)) // columns)
    if has_one_load(result):
        figure = new_figure(4.2 * columns + 1.5, height * max(3.3, rows_height(result.labels)))
    else:
        figure = new_figure(4.5 * columns, 3.3 * height)
    batch, held, overtaken, *more = figure.subplots(height, columns).flat
    for index, policy in enumerate(result.labels):
        _draw_behaviour([batch, held, overtaken, *more], result, policy, index)
    titles = ["batches with prompts, mean s", "decodes that such a batch holds back, %"]
    gaps = [f"mean gap of tier {name}, % of the deadline" for name in tiers]
    titles += ["prompts present that came earlier, %", *gaps]
    for axes, title in zip((batch, held, overtaken, *more), titles, strict=False):
        axes.set_title(folded(title, 50), loc="left", fontsize=10)
        _fit(axes, result, by_load=axes not in (batch, held))
    spare = more[len(tiers)] if len(more) > len(tiers) else None
    used(more, len(tiers))
    add_legend(figure, batch, spare)
    return figure


def _fit(axes: "Axes", result: Comparison, by_load: bool) -> None:
    """Names and ranges of the axes, from zero on; of one load there is a row per policy."""
    in_rows = by_load and has_one_load(result)
    if in_rows:
        name_rows(axes, result.labels)
        place = axes.get_subplotspec()
        axes.tick_params(labelleft=place is None or place.is_first_col())
        axes.set_xlabel(load_label(result, result.setting.loads[0]))
    else:
        axes.set_xlabel("arrival rate, requests/s" if by_load else "KV blocks in use, %")
    top = axes.dataLim.xmax if in_rows else axes.dataLim.ymax
    (axes.set_xlim if in_rows else axes.set_ylim)(0.0, 1.08 * top if 0.0 < top < np.inf else None)
    plain(axes)


def _draw_behaviour(panels: "list[Axes]", result: Comparison, policy: str, index: int) -> None:
    """The lines of one policy: against KV use in the first two panels, against load in the others."""
    batch, held, overtaken, *more = panels
    style = style_of(index) | {"linewidth": 1.6, "markersize": 4.5, "label": policy}
    mine = [row for row in result.behaviour if row.policy == policy]
    use, batch_s, held_share = _over_loads(mine)
    batch.plot(use, batch_s, **style)
    held.plot(use, 100.0 * held_share, **style)
    rates = [load_rate(result, row.load) for row in mine]
    shares = [[row.overtaken_share for row in mine]]
    shares += [[row.deadline_share.get(name) for row in mine] for name in result.cells[0].tiers]
    for axes, share in zip((overtaken, *more), shares, strict=False):
        if has_one_load(result):
            axes.plot(_percent(share), [index] * len(share), **(style | {"linestyle": "none", "label": None}))
        else:
            axes.plot(rates, _percent(share), **style)


def _percent(shares: list[float | None]) -> np.ndarray:
    return 100.0 * np.array([np.nan if share is None else share for share in shares])


def _over_loads(rows: Sequence[Behaviour]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KV use (%), batch seconds and share of decodes held, over all loads, where there were iterations enough."""
    count = np.array([row.iterations for row in rows], np.float64)
    total = count.sum(0)
    means = []
    for of in (attrgetter("batch_s"), attrgetter("held_share")):
        values = np.array([[np.nan if x is None else x for x in of(row)] for row in rows])
        means.append(np.nansum(count * np.nan_to_num(values), 0) / np.maximum(total, 1.0))
    enough = total >= LEAST_ITERATIONS
    use = (np.arange(len(total)) + 0.5) * 100.0 / len(total)
    return use[enough], means[0][enough], means[1][enough]
