"""A comparison of settings as tables: for the terminal, as one HTML file, and in Markdown for a pull request."""

import shlex
from collections.abc import Iterator, Sequence

from rich.text import Text

from agents.evaluation.result import JUDGEMENTS
from agents.evaluation.statistics import Interval, over_seeds
from agents.reporting.grid import Cell, Grid, Head, Part, figure, markdown_table
from agents.reporting.page import page
from agents.studies.referee.records import DECISIVE, MEASURES, Change, Measure, OptionComparison, Row, Total

STYLES = dict(zip(JUDGEMENTS, ("green", "red", ""), strict=True))
"""Colours of what is said of a difference."""
LARGE = 1000.0
"""A change that is shown without digits behind the point."""
ORDERS = {"median_tpot_ms": 2, "mean_e2el_ms": 3, "output_throughput": 4}
"""Columns that a narrow terminal may leave out."""


def _interval(value: Interval) -> str:
    text = _signed(value.mean)
    return f"{text} [{_signed(value.low)}, {_signed(value.high)}]" if value.low < value.high else text


def _signed(value: float) -> str:
    """A change; no more digits than can be read."""
    return figure(value, "+z.1f" if abs(value) < LARGE else "+,.0f")


def _change(change: Change, measure: Measure) -> Text:
    """A change as it is shown: per cent of a ratio, else so much more."""
    scale = 100.0 if measure.change == "ratio" else measure.scale
    found = change.change
    scaled = Interval(found.mean * scale, found.low * scale, found.high * scale, found.n)
    return Text(_interval(scaled), STYLES[change.judgement])


def _heads(*first: Head) -> tuple[Head, ...]:
    return (*first, *(Head(measure.title, "number", ORDERS.get(measure.key, 0)) for measure in MEASURES))


def totals_grid(result: OptionComparison) -> Grid:
    """Every setting against the baseline, over all scenarios."""
    heads = [Head("setting", "name"), *(Head(_change_title(one), "number", ORDERS.get(one.key, 0)) for one in MEASURES)]
    rows = [(*_total(row), *_counts(row)) for row in result.totals if row.variant != result.baseline]
    caption = (
        f"Against {result.baseline} on the same requests: mean over {len(result.scenarios)} scenarios (geometric where "
        f"in %) {over_seeds(result.seeds)}. Better, worse: scenarios in which clearly more, or "
        "fewer, requests met every deadline"
    )
    return Grid(
        [*heads, Head("better"), Head("worse")], [Part(rows, f"{result.policy}, suite {result.suite}")], caption
    )


def _change_title(measure: Measure) -> str:
    """The title of a measure whose changes are shown."""
    name, _, unit = measure.title.partition(", ")
    return f"{name}, %" if measure.change == "ratio" else f"{name}, points" if unit == "%" else name


def _total(row: Total) -> Iterator[Cell]:
    yield row.variant
    for measure in MEASURES:
        yield _change(row.changes[measure.key], measure)


def _counts(row: Total) -> tuple[str, str]:
    return str(len(row.better)), str(len(row.worse))


def scenario_grids(result: OptionComparison) -> Iterator[Grid]:
    """Every scenario: the baseline's numbers, then what each setting changes of them."""
    heads = _heads(Head("setting", "name"))
    for scenario in result.scenarios:
        rows = result.of(scenario)
        lines = [[row.variant, *_cells(row)] for row in rows]
        yield Grid(heads, [Part(lines, f"{scenario}: {rows[0].rate:.3g} requests/s")])


def _cells(row: Row) -> Iterator[Cell]:
    """The measures of a row: values of the baseline, changes of the others, per cent where they are ratios."""
    for measure in MEASURES:
        if not row.changes:
            yield figure(row.values[measure.key].mean * measure.scale, f".{measure.digits}f")
        else:
            text = _change(row.changes[measure.key], measure)
            yield _with_unit(text, "%") if measure.change == "ratio" else text


def _with_unit(text: Text, unit: str) -> Text:
    """A number with its unit behind it, before the interval."""
    number, _, interval = text.plain.partition(" ")
    return Text(f"{number}{unit} {interval}".strip() if number != "-" else number, text.style)


def verdict_lines(result: OptionComparison) -> Iterator[str]:
    """What each setting does to the requests that met every deadline, a line each; then what there is to know."""
    for row in result.totals:
        if row.variant != result.baseline:
            better, worse = (", ".join(names) or "none" for names in (row.better, row.worse))
            found = _change(row.changes[DECISIVE.key], DECISIVE)
            clear = (
                f"clearly better in {better}; clearly worse in {worse}"
                if result.seeds > 1
                else "one seed shows no more"
            )
            yield f"{row.variant}: SLO met {found.plain} points; {clear}."
    yield traces_line(result)


def traces_line(result: OptionComparison) -> str:
    """Whether the requests are those of the frozen suite."""
    if result.changed:
        return (
            f"NOT the frozen suite: {len(result.changed)} of {result.num_traces} traces are others than the suite "
            f"{result.suite} knows, first that of {result.changed[0]}; no other table can be compared with this one."
        )
    known = f"{result.frozen} of {result.num_traces} traces as the suite knows them" if result.frozen else "not frozen"
    return f"Suite digest {result.suite_hash}: {known}."


def command_line(result: OptionComparison) -> str:
    """The command that makes this result."""
    words = ["llmsched", "compare", "--policy", result.policy]
    for name, values in result.options.items():
        words += ["--option", f"{name}={','.join(values)}"]
    if result.baseline != result.variants[0].name:
        words += ["--baseline", result.baseline]
    words += ["--suite", result.suite, "--seeds", str(result.seeds), "--num-requests", str(result.requests)]
    return shlex.join(words)


def markdown_text(result: OptionComparison) -> str:
    """What can be pasted into a pull request: the totals, and every scenario folded away."""
    totals = totals_grid(result)
    options = "; ".join(f"{name} = {', '.join(values)}" for name, values in result.options.items())
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return (
        "\n\n".join(
            [
                f"### {result.policy}: {options}",
                markdown_table([head.title for head in totals.heads], [_marked(row) for row in totals.parts[0].rows]),
                f"{totals.caption}. Bold: the interval excludes zero, as one in twenty does by chance.",
                *verdict_lines(result),
                "<details><summary>Scenario by scenario: the baseline, then changes</summary>",
                markdown_table(
                    ["scenario", *(head.title for head in _heads(Head("setting")))], list(_scenario_rows(result))
                ),
                "</details>",
                f"`{command_line(result)}`; `llmsched verify compare.json` runs it again. {versions}.",
            ]
        )
        + "\n"
    )


def _scenario_rows(result: OptionComparison) -> Iterator[list[str]]:
    for scenario in result.scenarios:
        for number, row in enumerate(result.of(scenario)):
            yield ["" if number else f"{scenario} ({row.rate:.3g}/s)", *_marked([row.variant, *_cells(row)])]


def _marked(row: Sequence[Cell]) -> list[str]:
    """A row for Markdown: what is clear in bold."""
    return [f"**{cell}**" if isinstance(cell, Text) and cell.style else str(cell) for cell in row]


def html_text(result: OptionComparison) -> str:
    """The comparison as one HTML file without outside references.

    Raises:
        InputError: what draws reports is not installed.
    """
    return page(
        "compare.html",
        result=result,
        totals=totals_grid(result),
        lines=list(verdict_lines(result)),
        scenarios=list(scenario_grids(result)),
        notes=[command_line(result)],
    )
