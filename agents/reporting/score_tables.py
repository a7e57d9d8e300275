"""A score over a suite as tables, for the terminal and as one HTML file."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from agents.evaluation.standing import BEHIND, OUTCOMES
from agents.evaluation.statistics import Interval, over_seeds
from agents.reporting.grid import OUTCOME_STYLES, Cell, Grid, Head, Part, figure, markdown_table
from agents.reporting.page import page
from agents.studies.score.records import PACE, REFERENCES, SLOWER, Score, Standing, Total, World


def _interval(value: Interval, form: str = ".1f") -> str:
    text = figure(value.mean, form)
    return f"{text} [{figure(value.low, form)}, {figure(value.high, form)}]" if value.low < value.high else text


def totals_grid(result: Score) -> Grid:
    """The score of every policy, and how often it breaks what others keep."""
    heads = (
        *(Head("policy", "name"), Head("score"), Head(f"less {PACE}'s", "number", 1), *map(Head, OUTCOMES)),
        *(Head("deadlines lost"), Head(f"over {BEHIND:.0%} behind"), Head(f"over {SLOWER:.0%} slower")),
    )
    rows = [_total(row) for row in sorted(result.totals, key=lambda row: -row.score.mean)]
    caption = (
        f"Score: 100 is the best goodput and the shortest mean TTFT of {', '.join(REFERENCES)} in every scenario; mean "
        f"over {len(result.worlds)} scenarios {over_seeds(result.seeds)}. Wins, ties, loses: "
        "goodput against the best of them other than the policy. Deadlines lost: p99 TBT over the tier's deadline, of "
        f"{result.deadlines} that SLAI or slackfit keeps. Slower: mean TTFT against {PACE}'s, below saturation"
    )
    return Grid(heads, [Part(rows, f"Suite {result.suite}")], caption)


def _total(row: Total) -> tuple[Cell, ...]:
    counts = (row.wins, row.scenarios - row.wins - row.loses, row.loses)
    broken = (len(row.lost), len(row.behind), len(row.slower))
    return (row.policy, _interval(row.score), _interval(row.against, "+.1f"), *map(str, (*counts, *broken)))


def scenario_grids(result: Score) -> Iterator[Grid]:
    """The numbers of every scenario, a table for each: tiers differ between them."""
    for world in result.worlds:
        heads = (
            *(Head("policy", "name"), Head("score"), Head("SLO met, %"), Head("goodput, req/s")),
            *(Head("difference, %"), Head("TTFT mean, s"), Head("TTFT median, s"), Head("TTFT p99, s", "number", 1)),
            *(Head(f"TBT p99 {tier}, s ({due:g})") for tier, due in world.deadlines.items()),
            Head("sound", "number", 2),
        )
        rows = [_line(row, result.seeds) for row in result.of(world.scenario)]
        yield Grid(heads, [Part(rows, _title(world))])


def _title(world: World) -> str:
    load = f"{world.rate:.3g} requests/s{', beyond saturation' if world.saturated else ''}"
    return f"{world.scenario}: {load}" if world.scenario == world.text else f"{world.scenario}: {load} ({world.text})"


def _line(row: Standing, seeds: int) -> tuple[Cell, ...]:
    gaps = [
        Text(figure(gap.mean / 1000.0, ".3f") + ("!" if tier in row.lost else ""), "red" if tier in row.late else "")
        for tier, gap in row.p99_itl_ms.items()
    ]
    waits = [value.mean / 1000.0 for value in (row.mean_ttft_ms, row.median_ttft_ms, row.p99_ttft_ms)]
    mean = Text(figure(waits[0], ".3f"), "red" if row.is_slower else "")
    met, goodput = figure(100.0 * row.slo_attainment.mean, ".1f"), figure(row.slo_goodput.mean, ".3f")
    relative = Text("-" if row.relative is None else figure(100.0 * row.relative, "+.1f"), OUTCOME_STYLES[row.outcome])
    others = (figure(wait, ".3f") for wait in waits[1:])
    return (
        row.policy,
        figure(row.score.mean, ".1f"),
        met,
        goodput,
        relative,
        mean,
        *others,
        *gaps,
        f"{row.sound}/{seeds}",
    )


def verdict_lines(result: Score) -> Iterator[str]:
    """What each policy breaks, a line for each kind; skipped scenarios first."""
    if result.skipped:
        yield f"Skipped, nobody serves them: {', '.join(result.skipped)}."
    for row in (row for row in result.totals if row.policy in result.scored):
        lost = _broken(row.lost, "misses")
        yield f"{row.policy}: the {result.deadlines} deadlines that SLAI or slackfit keeps: {lost}."
        behind = _broken(row.behind, "behind in")
        best = f"the best of {', '.join(REFERENCES)}"
        yield f"{row.policy}: goodput at most {BEHIND:.0%} below {best} in {row.scenarios}: {behind}."
        yield f"{row.policy}: goodput above it for sure in {row.wins}, below it for sure in {row.loses}."
        below = sum(not world.saturated for world in result.worlds)
        slower = _broken(row.slower, "slower in")
        yield f"{row.policy}: mean TTFT at most {SLOWER:.0%} above {PACE}'s in {below} below saturation: {slower}."


def _broken(places: Sequence[str], verb: str) -> str:
    return f"{verb} {len(places)} ({'; '.join(places)})" if places else "all kept"


def markdown_text(result: Score) -> str:
    """Two tables for a page: the totals, and the score of each policy in each scenario."""
    totals = totals_grid(result)
    (part,) = totals.parts
    names = [str(row[0]) for row in part.rows]
    rows = [[world.scenario, figure(world.rate, ".3g"), *_scores(result, world, names)] for world in result.worlds]
    note = (
        "Score in each scenario. ! p99 TBT of a tier over a deadline that SLAI or slackfit keeps; - more than "
        f"{BEHIND:.0%} of the best reference's goodput behind."
    )
    per_scenario = markdown_table(["scenario", "requests/s", *names], rows)
    return "\n\n".join([markdown_table([head.title for head in totals.heads], part.rows), note, per_scenario]) + "\n"


def _scores(result: Score, world: World, names: Sequence[str]) -> Iterator[str]:
    rows = {row.policy: row for row in result.of(world.scenario)}
    for name in names:
        row = rows[name]
        yield figure(row.score.mean, ".0f") + "!" * bool(row.lost) + "-" * row.is_behind


def html_text(result: Score) -> str:
    """The score as one HTML file without outside references.

    Raises:
        InputError: what draws reports is not installed.
    """
    notes = dict.fromkeys(note for world in result.worlds for note in world.notes)
    return page(
        "score.html",
        result=result,
        totals=totals_grid(result),
        lines=list(verdict_lines(result)),
        scenarios=list(scenario_grids(result)),
        notes=list(notes),
    )
