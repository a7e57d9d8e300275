"""The comparison as tables: for the terminal, as CSV and as LaTeX, all from the JSON of an evaluation."""

import csv
import io
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from agents.reporting.grid import Cell, Grid, Head, Part, show

Result = dict[str, Any]
Row = dict[str, Any]


class Column(NamedTuple):
    """One number per policy and load."""

    key: str  # as in the report, `tiers.<name>.<key>` for one of a tier
    title: str
    scale: float  # from the report's unit to the table's
    digits: int
    has_interval: bool = True  # whether the interval is worth its room


def columns(result: Result) -> list[Column]:
    """What tables show, the tiers' TBT included."""
    tiers = result["cells"][0]["report"]["tiers"]
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


def _limited_goodput(result: Result) -> list[Column]:
    """VLLM's goodput, where limits were given."""
    limits = result["config"]["goodput"]
    if limits is None:
        return []
    text = " ".join(f"{name} {limit:g}" for name, limit in limits.items() if limit is not None)
    return [Column("request_goodput", f"goodput in {text} ms, req/s", 1.0, 3)]


def _zero_counts(result: Result) -> list[str]:
    return [key for key in COUNTS if not any(row["metrics"][key]["mean"] for row in result["summary"])]


def remarks(result: Result) -> list[str]:
    """The notes of a result, and which counts are left out of the tables because they are all zero."""
    zero = _zero_counts(result)
    return [*result["notes"], *([f"Zero in every run: {', '.join(zero)}."] if zero else [])]


LATEX = ("TTFT", "max wait", "TBT", "SLO", "goodput")
"""Columns of the LaTeX table, by the beginning of their titles."""
COUNTS = ("ended_by_length", "unfinished", "dropped", "evictions")
"""Columns that are left out where they are all zero."""


_LOOP = re.compile(r"closed loop, (\d+ users?|at most \d+ requests in flight)")


def load_label(result: Result, load: float | None) -> str:
    """A load in words: its rate, or that the recorded times are replayed."""
    if load is not None:
        return f"{load:g} req/s"
    for trace in result["traces"]:
        if trace["load"] is None and (loop := _LOOP.search(trace["source"])):
            return loop.group()
    rates = [trace["rate"] for trace in result["traces"] if trace["load"] is None and trace["rate"]]
    scale = result["config"]["source"]["rate_scale"]
    scaled = f" x {scale:g}" if scale != 1.0 else ""
    return f"recorded{scaled} ({rates[0]:.3g} req/s)" if rates else "all at once"


def load_rate(result: Result, load: float | None) -> float:
    """A load as a number for an axis, requests/s (nan for all at once)."""
    if load is not None:
        return load
    rates = [trace["rate"] for trace in result["traces"] if trace["load"] is None and trace["rate"]]
    return float(rates[0]) if rates else math.nan


def number(value: float | None, column: Column, sign: bool = False) -> str:
    """A number in the table's unit, a dash for none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value * column.scale:{'+' if sign else ''}.{column.digits}f}"


def with_interval(metric: Row, column: Column) -> str:
    """`mean` or `mean [low, high]`, without the interval where it has no width."""
    text = number(metric["mean"], column)
    low, high = number(metric["low"], column), number(metric["high"], column)
    return text if low in ("-", high) or not column.has_interval else f"{text} [{low}, {high}]"


def criteria(row: Row) -> tuple[str, str]:
    """How many seeds meet the paper's and the sound criterion, as `5/5`."""
    return f"{row['paper']}/{row['seeds']}", f"{row['sound']}/{row['seeds']}"


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


def _summary_grid(result: Result) -> Grid:
    """One part per load."""
    shown = columns(result)
    titles = [*(column.title for column in shown), "capacity paper", "capacity sound"]
    numbers = [Head(title, "number", _order(title)) for title in titles]
    parts = []
    for load in result["config"]["loads"]:
        rows: list[tuple[Cell, ...]] = []
        for row in (row for row in result["summary"] if row["load"] == load):
            values = [number(row["metrics"][column.key]["mean"], column) for column in shown]
            verdict = Text(row["verdict"], style=_COLOURS[row["verdict"]])
            rows.append((row["policy"], *values, *criteria(row), verdict))
        parts.append(Part(rows, load_label(result, load)))
    return Grid((Head("policy", "name"), *numbers, Head("verdict", "prose")), parts)


def print_tables(result: Result, console: Console, wide: bool = False) -> None:
    """One table per load, then the differences to the reference, decision times, notes and warnings.

    Args:
        result: of an evaluation.
        console: where (`agents.reporting.grid.terminal_console`).
        wide: show every column, whatever the width.
    """
    show(_summary_grid(result), console, wide)
    if differences := _difference_grid(result):
        show(differences, console, wide)
    looks = result["windows"].get("policies", {})
    times = [f"{p} {seen['decision_us']['median']:.2f}" for p, seen in looks.items() if seen["decision_us"]]
    if times:
        console.print(Text(f"Time of one decision, us (median): {', '.join(times)}", style="dim"))
    for note in remarks(result):
        console.print(Text(note, style="dim"))
    for warning in result["warnings"]:
        console.print(Text(f"Outside the profile's range: {warning}", style="yellow"))


HEADLINE = ("median_ttft_ms", "mean_ttft_ms", "p99_ttft_ms", "slo_attainment", "slo_goodput")
"""Differences that the terminal shows."""


def difference_text(row: Row, column: Column) -> str:
    """A paired difference with its interval, and relative to the reference."""
    gap = row["difference"]
    text = number(gap["mean"], column, sign=True)
    if row["relative"] is not None:
        text += f" ({row['relative']:+.0%})"
    if gap["low"] is None:
        return text
    return f"{text} [{number(gap['low'], column, sign=True)}, {number(gap['high'], column, sign=True)}]"


_DIFFERENCE_ORDER = {"mean_ttft_ms": 3, "slo_attainment": 2, "p99_ttft_ms": 1}
"""Differences in the order in which a narrow terminal leaves them out, the highest first."""


def _difference_grid(result: Result) -> Grid | None:
    """A row for each load and policy; None where there is nothing to compare."""
    found = {(row["load"], row["policy"], row["metric"]): row for row in result["paired"] if row["metric"] in HEADLINE}
    if not found:
        return None
    by_key = {column.key: column for column in columns(result)}
    rows = []
    for load, policy in dict.fromkeys((load, policy) for load, policy, _ in found):
        cells = []
        for row in (found[load, policy, key] for key in HEADLINE):
            style = {"better": "green", "worse": "red"}.get(row["judgement"], "")
            cells.append(Text(difference_text(row, by_key[row["metric"]]), style=style))
        rows.append(("-" if load is None else f"{load:g}", policy, *cells))
    numbers = [Head(by_key[key].title, "number", _DIFFERENCE_ORDER.get(key, 0)) for key in HEADLINE]
    title = f"Difference to {result['reference']}, same traces, 95 % interval"
    return Grid((Head("load", "name"), Head("policy", "name"), *numbers), [Part(rows, title)])


def csv_text(result: Result) -> str:
    """One line per policy and load: mean and interval of every number, in the units of the report."""
    keys = list(result["summary"][0]["metrics"]) if result["summary"] else []
    names = [f"{key}{part}" for key in keys for part in ("", "_low", "_high")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["policy", "load", "rate", "seeds", "paper", "sound", "verdict", *names])
    for row in result["summary"]:
        metrics = [row["metrics"][key][part] for key in keys for part in ("mean", "low", "high")]
        load = "" if row["load"] is None else row["load"]
        rate = load_rate(result, row["load"])
        fixed = [row["policy"], load, rate, row["seeds"], row["paper"], row["sound"], row["verdict"]]
        writer.writerow([*fixed, *("" if value is None else value for value in metrics)])
    return out.getvalue()


_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
)


def _escaped(text: str) -> str:
    return text.translate(_LATEX)


def latex_text(result: Result) -> str:
    """A booktabs table: policies by load, means over seeds with half the width of the interval."""
    shown = [column for column in columns(result) if column.title.startswith(LATEX)]

    def cell(metric: Row, column: Column) -> str:
        mean = number(metric["mean"], column)
        if metric["low"] is None or mean == "-":
            return mean.replace("-", "--")
        return f"${mean} \\pm {number((metric['high'] - metric['low']) / 2, column)}$"

    head = " & ".join(_escaped(title) for title in ["load", "policy", *(c.title for c in shown), "verdict"])
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{ll{'r' * len(shown)}l}}",
        "\\toprule",
        f"{head} \\\\",
    ]
    for load in result["config"]["loads"]:
        lines.append("\\midrule")
        for row in (row for row in result["summary"] if row["load"] == load):
            cells = [cell(row["metrics"][column.key], column) for column in shown]
            fixed = [_escaped(load_label(result, load)), _escaped(row["policy"])]
            lines.append(" & ".join([*fixed, *cells, row["verdict"]]) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


Writer = Callable[[Result], str]
TEXTS: dict[str, Writer] = {"table.csv": csv_text, "table.tex": latex_text}
"""Text files that a report consists of, by name."""
