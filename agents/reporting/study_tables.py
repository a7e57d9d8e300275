"""The tables of the studies."""

from collections.abc import Iterator, Sequence

from agents.evaluation.arrivals import arrivals_note, by_load
from agents.evaluation.result import Comparison
from agents.evaluation.statistics import Interval
from agents.reporting.grid import Grid, Head, Part, figure
from agents.reporting.tables import load_label
from agents.studies import directions, reproduce, sensitivity
from agents.studies.tile_study import Bounds, Tiles

WAITS = {
    "median_ttft_ms": ("TTFT median, s", 1e-3, 3),
    "mean_ttft_ms": ("TTFT mean, s", 1e-3, 3),
    "p99_ttft_ms": ("TTFT p99, s", 1e-3, 1),
    "p99.9_ttft_ms": ("p99.9 TTFT, s", 1e-3, 1),
    "prompt_quartiles.q4.p99.9_ttft_ms": ("of the longest quarter", 1e-3, 1),
    "max_wait_s": ("max wait, s", 1.0, 1),
    "slo_goodput": ("goodput, req/s", 1.0, 3),
}
"""Numbers of a report that are shown: title, scale, digits."""
LEFT_OUT_FIRST = {"median_ttft_ms": 2, "p99.9_ttft_ms": 1}
"""What a narrow terminal leaves out, the highest first."""


def starvation_grid(result: Comparison) -> Grid:
    """Means and longest waits of every setting of the knob, one part per load."""
    parts = []
    for load in result.setting.loads:
        rows = [
            (row.policy, *(figure(row[key].mean * scale, f".{n}f") for key, (_, scale, n) in WAITS.items()))
            for row in result.at(load)
        ]
        parts.append(Part(rows, load_label(result, load)))
    heads = [Head(title, "number", LEFT_OUT_FIRST.get(key, 0)) for key, (title, _, _) in WAITS.items()]
    return Grid((Head("policy", "name"), *heads), parts)


def _load(load: float | None) -> str:
    return "recorded" if load is None else f"{load:g}"


def sensitivity_grids(result: sensitivity.Sensitivity) -> Iterator[Grid]:
    """The errors of the channels, each metric by policy, load and channel, and where predictions pay."""
    errors = [(row.channel or "", figure(row.mae, ".0f"), figure(row.tau, ".2f")) for row in result.channels]
    heads = (Head("channel", "name"), Head("mean absolute error, tokens"), Head("Kendall tau"))
    yield Grid(heads, [Part(errors, "Predictions: errors measured, mean over seeds")])
    for name in sensitivity.METRICS:
        yield _effects(result, name)
    pays = [(row.policy, _load(row.load), ", ".join(row.channels) or "none") for row in result.pays]
    heads = (Head("policy", "name"), Head("load", "name"), Head("channels", "name"))
    yield Grid(heads, [Part(pays, "Where believing predictions pays: mean latency lower for sure")])


def _effects(result: sensitivity.Sensitivity, metric: str) -> Grid:
    lines: dict[tuple[str, str], list[str]] = {}
    for row in result.rows:
        effect: sensitivity.Effect = getattr(row, metric)
        sure = "*" if effect.difference.excludes_zero else " "
        text = f"{figure(effect.relative, '+.0%').replace('%', ' %')}{sure}"
        lines.setdefault((row.policy, _load(row.load)), []).append(text)
    rows = [(*key, *texts) for key, texts in lines.items()]
    channels = [Head(channel.channel or "") for channel in result.channels]
    title = f"{sensitivity.METRICS[metric].capitalize()} relative to {result.reference}, same requests"
    caption = "* the 95 % interval of the paired difference excludes zero"
    return Grid((Head("policy", "name"), Head("load", "name"), *channels), [Part(rows, title)], caption)


def directions_grid(result: directions.Outcome) -> Grid:
    """A study: every metric at each rate, how many times lower its own one is, and whether the direction comes out."""
    study = result.study
    rows = [_direction(row) for row in result.rows]
    ends = frozenset(k for k, row in enumerate(result.rows) if row.policy == study.policies[-1])
    metric = directions.METRICS[study.metric]
    numbers = [Head(title, "number", 0 if title == metric else 1) for title in directions.METRICS.values()]
    heads = (Head("rate", "name"), Head("policy", "name"), *numbers, Head(f"{metric.partition(',')[0]}: times lower"))
    held = "comes out" if result.holds else "does NOT come out"
    remark = f"{study.remark}. " if study.remark else ""
    came = arrivals_note(by_load((row.rate, row.arrival_rate.mean) for row in result.rows))
    caption = (
        f"{study.workload}, {study.config.num_blocks} KV blocks, mean over {result.seeds} seeds. "
        f"The direction {held} at the highest rate. {remark}{came}"
    )
    return Grid(heads, [Part(rows, f"{study.name} ({study.paper}): {study.published}", ends)], caption)


def _direction(row: directions.Row) -> tuple[str, ...]:
    means = (_mean(row.metric(name)) for name in directions.METRICS)
    return (f"{row.rate:g}", row.policy, *means, _mean(row.times_lower, interval=True))


def _mean(value: Interval | None, interval: bool = False) -> str:
    """A mean in three digits, with its interval if that is asked for and there is one."""
    text = figure(value.mean if value else None, ".3g")
    if value is None or not interval or text == "-" or figure(value.low, "") == "-":
        return text
    return f"{text} [{value.low:.3g}, {value.high:.3g}]"


FIGURES = {
    "median_ttft_s": "median TTFT",
    "p99_ttft_s": "p99 TTFT",
    "p99_tbt_strict_s": "p99 TBT strict",
    "p99_tbt_relaxed_s": "p99 TBT relaxed",
}


def _over_seeds(values: Sequence[float | None]) -> str:
    """Mean over seeds, and the range where the seeds differ visibly."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    low, high = (f"{value:.3f}" for value in (min(known), max(known)))
    mean = f"{sum(known) / len(known):.3f}"
    return mean if low == high else f"{mean} ({low}-{high})"


def figures_grid(result: reproduce.Table, semantics: str) -> Grid:
    """The table of the SLAI paper in one semantics."""
    setting = result.setting
    rows = [_figures(result, semantics, policy, rate) for rate in setting.rates for policy in setting.policies]
    each = len(setting.policies)
    ends = frozenset(range(each - 1, len(rows), each))
    heads = (Head("rate", "name"), Head("policy", "name"), *(Head(title) for title in FIGURES.values()))
    title = f"{semantics} semantics, seconds, mean over seeds (range)"
    caption = f"TTFT: {setting.ttft[semantics]}; {setting.lengths}, {setting.num_requests} requests"
    return Grid((*heads, Head("capacity verdicts", "prose", 1)), [Part(rows, title, ends)], caption)


def _figures(result: reproduce.Table, semantics: str, policy: str, rate: float) -> tuple[str, ...]:
    cells = [c for c in result.cells if (c.semantics, c.policy, c.rate) == (semantics, policy, rate)]
    figures = (_over_seeds([getattr(cell, name) for cell in cells]) for name in FIGURES)
    return (f"{rate:g}", policy, *figures, ", ".join(sorted({cell.verdict for cell in cells})))


_SIGNS = {"exact": "", "above": ">", "below": "<"}
"""Of a capacity that the search's limits hide."""


def gains_grid(result: reproduce.Table) -> Grid:
    """The capacities by seed, and what SLAI gains."""
    policies = result.setting.policies
    rows = [
        (gain.semantics, gain.criterion, *(_rates(result, gain, policy) for policy in policies), *_gain(gain))
        for gain in result.gains
    ]
    names = (Head("semantics", "name"), Head("criterion", "name"))
    figures = (*(Head(policy, "prose") for policy in policies), Head("gain by seed", "prose", 1), Head("mean gain"))
    held = {True: "yes", False: "NO", None: "not comparable (needs --lengths, 2500 requests, all four rates)"}
    caption = "; ".join(f"{name}: {held[value]}" for name, value in result.targets.items())
    title = "Capacity, nominal requests/s by seed, and the gain of SLAI over Sarathi"
    return Grid((*names, *figures), [Part(rows, title)], caption)


def _rates(result: reproduce.Table, gain: reproduce.Gain, policy: str) -> str:
    """The capacities of a policy by seed."""
    found = [c for c in result.capacities if (c.semantics, c.policy) == (gain.semantics, policy)]
    rates = [capacity.rate(gain.criterion) for capacity in found]
    return " ".join(f"{_SIGNS[reproduce.bound_of(rate)]}{rate:.2f}" for rate in rates)


def _gain(gain: reproduce.Gain) -> tuple[str, str]:
    """The gain by seed, and in the mean."""
    by_seed = " ".join(f"{100 * share:+.0f} %" for share in gain.per_seed)
    sign = {"at least": ">= ", "at most": "<= "}.get(gain.bound, "")
    return by_seed, "-" if gain.bound == "open" else f"{sign}{100 * gain.mean:+.1f} %"


def deviations_grid(result: reproduce.Table) -> Grid:
    """Figures beside those of the public code."""
    rows = []
    for row in result.deviations:
        deviation = "-" if row.deviation is None else f"{100 * row.deviation:+.1f} %"
        figures = (f"{row.public:g}", figure(row.ours, ".3f"), deviation)
        rows.append((f"{row.rate:g}", row.policy, FIGURES[row.figure], *figures))
    same = "the same requests" if result.setting.real_lengths else "other requests of the same kind"
    title = f"Against the public code, seed {result.setting.seeds[0]}, {same}"
    names = (Head("rate", "name"), Head("policy", "name"), Head("figure", "prose"))
    return Grid((*names, Head("public, s"), Head("here, s"), Head("deviation")), [Part(rows, title)])


def tiles_grid(result: Tiles) -> Grid:
    """Throughputs and their shares of the bound, by fixed cost."""
    setting, bounds = result.setting, result.bounds
    heads = [Head("policy", "prose")]
    for t0 in bounds:
        heads += [Head(f"t0 = {t0}"), Head("of 1/E[w]", "number", 1)]
    blank = ("",) * (2 * len(bounds) - 1)
    rows: list[tuple[str, ...]] = [
        ("bound 1/E[w], prompts padded to tiles", *_padded(bounds)),
        ("bound for packed tokens (t0 = 0)", f"{bounds['0'].tokens:.4f}", *blank),
    ]
    for row in result.rows:
        values = [(row.throughput[t0], row.share_of_bound[t0]) for t0 in bounds]
        rows.append((row.name, *(text for v, share in values for text in (f"{v:.4f}", f"{100 * share:.1f} %"))))
    title = f"Saturated throughput, requests per tile column of time ({setting.tile_tokens} tokens)"
    caption = f"{setting.requests} requests, {setting.lengths}; t0: fixed cost of an iteration in columns"
    return Grid(heads, [Part(rows, title, frozenset({1}))], caption)


def _padded(bounds: dict[str, Bounds]) -> list[str]:
    return [text for bound in bounds.values() for text in (f"{bound.padded:.4f}", "100 %")]
