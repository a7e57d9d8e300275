"""The comparison as tables: for the terminal, as CSV and as LaTeX, all from the JSON of an evaluation."""

import csv
import io
import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from agents.evaluation.result import Comparison, Difference, Summary
from agents.evaluation.statistics import Interval
from agents.reporting.grid import Cell, Grid, Head, Part, show
from engine.errors import InputError


class Column(NamedTuple):
    """One number per policy and load."""

    key: str  # as in the report, `tiers.<name>.<key>` for one of a tier
    title: str
    scale: float  # from the report's unit to the table's
    digits: int
    has_interval: bool = True  # whether the interval is worth its room


def columns(result: Comparison) -> list[Column]:
    """What tables show, the tiers' TBT included."""
    tiers = result.cells[0].tiers
    found = [
        Column("median_ttft_ms", "TTFT median, s", 1e-3, 3),
        Column("mean_ttft_ms", "TTFT mean, s", 1e-3, 3),
        Column("p99_ttft_ms", "TTFT p99, s", 1e-3, 2),
        Column("p99.9_ttft_ms", "p99.9 TTFT, s", 1e-3, 1),
        Column("max_wait_s", "max wait, s", 1.0, 1),
        *(Column(f"tiers.{tier}.p99_itl_ms", f"TBT p99 {tier}, s", 1e-3, 3) for tier in tiers),
        Column("mean_e2el_ms", "E2E mean, s", 1e-3, 1),
        Column("slo_attainment", "SLO met, %", 100.0, 1),
        Column("slo_goodput", "goodput, req/s", 1.0, 3),
        *_limited_goodput(result),
        Column("output_throughput", "output, tok/s", 1.0, 1),
        Column("ended_by_length", "ended by length", 1.0, 0, False),
        Column("unfinished", "unfinished", 1.0, 0, False),
        Column("dropped", "dropped", 1.0, 0, False),
        Column("evictions", "evictions", 1.0, 0, False),
        *(Column(f"prompt_quartiles.q{k}.p99.9_ttft_ms", f"p99.9 TTFT Q{k}, s", 1e-3, 1, False) for k in range(1, 5)),
        Column("jain_index", "Jain index", 1.0, 2, False),
        Column("kv_use", "KV use, %", 100.0, 0, False),
        Column("busy_share", "busy, %", 100.0, 0, False),
    ]
    zero = _zero_counts(result)
    return [column for column in found if column.key not in zero]


def check_shown(result: Comparison) -> None:
    """Find what tables and plots would look for in vain, before anything is written.

    Raises:
        InputError: a number that is shown is missing in a summary, a difference or a report.
    """
    shown = columns(result)
    for row in result.summary:
        for column in shown:
            row[column.key]
    compared = {row.metric for row in result.paired}
    for metric in HEADLINE:
        if compared and metric not in compared:
            raise InputError(f"paired: expected differences of {metric}, got none")
    for tier in result.cells[0].tiers:
        deadline = result.cells[0].number(key := f"tiers.{tier}.tbt_deadline_ms")
        if not math.isfinite(deadline):
            raise InputError(f"cells[0].report: expected a number at {key}, got null")


def _limited_goodput(result: Comparison) -> list[Column]:
    """VLLM's goodput, where limits were given."""
    limits = result.setting.goodput
    if limits is None:
        return []
    text = " ".join(f"{name} {limit:g}" for name, limit in limits.items() if limit is not None)
    return [Column("request_goodput", f"goodput in {text} ms, req/s", 1.0, 3)]


def _zero_counts(result: Comparison) -> list[str]:
    return [key for key in COUNTS if not any(row[key].mean > 0.0 for row in result.summary)]


def remarks(result: Comparison) -> list[str]:
    """The notes of a result, and which counts are left out of the tables because they are all zero."""
    zero = _zero_counts(result)
    return [*result.notes, *([f"Zero in every run: {', '.join(zero)}."] if zero else [])]


LATEX = ("TTFT", "max wait", "TBT", "SLO", "goodput")
"""Columns of the LaTeX table, by the beginning of their titles."""
COUNTS = ("ended_by_length", "unfinished", "dropped", "evictions")
"""Columns that are left out where they are all zero."""


_LOOP = re.compile(r"closed loop, (\d+ users?|at most \d+ requests in flight)")


def load_label(result: Comparison, load: float | None) -> str:
    """A load in words: its rate, or that the recorded times are replayed."""
    if load is not None:
        return f"{load:g} req/s"
    for trace in result.traces:
        if trace.load is None and (loop := _LOOP.search(trace.source)):
            return loop.group()
    rates = _recorded_rates(result)
    scale = result.setting.source.rate_scale
    scaled = f" x {scale:g}" if scale != 1.0 else ""
    return f"recorded{scaled} ({rates[0]:.3g} req/s)" if rates else "all at once"


def _recorded_rates(result: Comparison) -> list[float]:
    """Rates of the traces whose times are replayed, requests/s."""
    return [trace.rate for trace in result.traces if trace.load is None and trace.rate]


def load_rate(result: Comparison, load: float | None) -> float:
    """A load as a number for an axis, requests/s (nan for all at once)."""
    if load is not None:
        return load
    rates = _recorded_rates(result)
    return float(rates[0]) if rates else math.nan


def number(value: float | None, column: Column, sign: bool = False) -> str:
    """A number in the table's unit, a dash for none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value * column.scale:{'+' if sign else ''}.{column.digits}f}"


def with_interval(metric: Interval, column: Column) -> str:
    """`mean` or `mean [low, high]`, without the interval where it has no width."""
    text = number(metric.mean, column)
    low, high = number(metric.low, column), number(metric.high, column)
    return text if low in ("-", high) or not column.has_interval else f"{text} [{low}, {high}]"


def criteria(row: Summary) -> tuple[str, str]:
    """How many seeds meet the paper's and the sound criterion, as `5/5`."""
    return f"{row.paper}/{row.seeds}", f"{row.sound}/{row.seeds}"


_COLOURS = {"stable": "green", "starving": "yellow", "late": "yellow", "saturated": "red", "unknown": ""}

LEFT_OUT_FIRST = (
    "busy", "KV use", "Jain", "p99.9 TTFT Q", "output", "E2E", "evictions", "dropped", "ended", "p99.9 TTFT",
    "unfinished", "capacity", "max wait", "TTFT mean", "TBT",
)  # fmt: skip
"""Columns in the order in which a narrow terminal leaves them out, by the beginning of their titles; what is not here
(policy, median and p99 TTFT, SLO, goodput, verdict) always stands."""


def _order(title: str) -> int:
    """Place of a column in the order of leaving out, 0 for those that stand."""
    for place, beginning in enumerate(LEFT_OUT_FIRST):
        if title.startswith(beginning):
            return len(LEFT_OUT_FIRST) - place
    return 0


def _summary_grid(result: Comparison) -> Grid:
    """One part per load."""
    shown = columns(result)
    titles = [*(column.title for column in shown), "capacity paper", "capacity sound"]
    numbers = [Head(title, "number", _order(title)) for title in titles]
    parts = []
    for load in result.setting.loads:
        rows: list[tuple[Cell, ...]] = []
        for row in result.at(load):
            values = [number(row[column.key].mean, column) for column in shown]
            verdict = Text(row.verdict, style=_COLOURS[row.verdict])
            rows.append((row.policy, *values, *criteria(row), verdict))
        parts.append(Part(rows, load_label(result, load)))
    return Grid((Head("policy", "name"), *numbers, Head("verdict", "prose")), parts)


def print_tables(result: Comparison, console: Console, wide: bool = False) -> None:
    """One table per load, then the differences to the reference, decision times, notes and warnings.

    Args:
        result: of an evaluation.
        console: where (`agents.reporting.grid.terminal_console`).
        wide: show every column, whatever the width.
    """
    show(_summary_grid(result), console, wide)
    if differences := _difference_grid(result):
        show(differences, console, wide)
    looks = result.windows.policies if result.windows else {}
    times = [f"{policy} {seen.decision_us.median:.2f}" for policy, seen in looks.items() if seen.decision_us]
    if times:
        console.print(Text(f"Time of one decision, us (median): {', '.join(times)}", style="dim"))
    for note in remarks(result):
        console.print(Text(note, style="dim"))
    for warning in result.warnings:
        console.print(Text(f"Outside the profile's range: {warning}", style="yellow"))


HEADLINE = ("median_ttft_ms", "mean_ttft_ms", "p99_ttft_ms", "slo_attainment", "slo_goodput")
"""Differences that the terminal shows."""


def difference_text(row: Difference, column: Column) -> str:
    """A paired difference with its interval, and relative to the reference."""
    gap = row.difference
    text = number(gap.mean, column, sign=True)
    if row.relative is not None:
        text += f" ({row.relative:+.0%})"
    if not math.isfinite(gap.low):
        return text
    return f"{text} [{number(gap.low, column, sign=True)}, {number(gap.high, column, sign=True)}]"


def differences(result: Comparison) -> dict[tuple[float | None, str], dict[str, Difference]]:
    """The differences of each load and policy, by metric."""
    found: dict[tuple[float | None, str], dict[str, Difference]] = {}
    for row in result.paired:
        found.setdefault((row.load, row.policy), {})[row.metric] = row
    return found


_DIFFERENCE_ORDER = {"mean_ttft_ms": 3, "slo_attainment": 2, "p99_ttft_ms": 1}
"""Differences in the order in which a narrow terminal leaves them out, the highest first."""


def _difference_grid(result: Comparison) -> Grid | None:
    """A row for each load and policy; None where there is nothing to compare."""
    if not result.paired:
        return None
    by_key = {column.key: column for column in columns(result)}
    rows: list[tuple[Cell, ...]] = []
    for (load, policy), found in differences(result).items():
        cells = [
            Text(difference_text(row, by_key[row.metric]), style=_STYLES.get(row.judgement, ""))
            for row in _headline(found)
        ]
        rows.append(("-" if load is None else f"{load:g}", policy, *cells))
    numbers = [Head(by_key[key].title, "number", _DIFFERENCE_ORDER.get(key, 0)) for key in HEADLINE]
    title = f"Difference to {result.reference}, same traces, 95 % interval"
    return Grid((Head("load", "name"), Head("policy", "name"), *numbers), [Part(rows, title)])


_STYLES = {"better": "green", "worse": "red"}
"""Colours of differences that are sure."""


def _headline(found: Mapping[str, Difference]) -> list[Difference]:
    return [found[key] for key in HEADLINE]


def csv_text(result: Comparison) -> str:
    """One line per policy and load: mean and interval of every number, in the units of the report."""
    keys = list(result.summary[0].metrics)
    names = [f"{key}{part}" for key in keys for part in ("", "_low", "_high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["policy", "load", "rate", "seeds", "paper", "sound", "verdict", *names])
    for row in result.summary:
        numbers = [value for key in keys for value in (row[key].mean, row[key].low, row[key].high)]
        fixed = [row.policy, row.load, load_rate(result, row.load), row.seeds, row.paper, row.sound, row.verdict]
        writer.writerow([*fixed, *(value if math.isfinite(value) else None for value in numbers)])
    return out.getvalue()


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


def _escaped(text: str) -> str:
    return text.translate(_LATEX)


def latex_text(result: Comparison) -> str:
    """A booktabs table: policies by load, means over seeds with half the width of the interval."""
    shown = [column for column in columns(result) if column.title.startswith(LATEX)]

    def cell(metric: Interval, column: Column) -> str:
        mean = number(metric.mean, column)
        if not math.isfinite(metric.low) or mean == "-":
            return mean.replace("-", "--")
        return f"${mean} \\pm {number((metric.high - metric.low) / 2, column)}$"

    head = " & ".join(_escaped(title) for title in ["load", "policy", *(c.title for c in shown), "verdict"])
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{ll{'r' * len(shown)}l}}",
        "\\toprule",
        f"{head} \\\\",
    ]
    for load in result.setting.loads:
        lines.append("\\midrule")
        for row in result.at(load):
            cells = [cell(row[column.key], column) for column in shown]
            fixed = [_escaped(load_label(result, load)), _escaped(row.policy)]
            lines.append(" & ".join([*fixed, *cells, row.verdict]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


Writer = Callable[[Comparison], str]
TEXTS: dict[str, Writer] = {"table.csv": csv_text, "table.tex": latex_text}
"""Text files that a report consists of, by name."""
