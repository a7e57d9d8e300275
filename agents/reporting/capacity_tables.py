"""The capacities that a search found, as tables and remarks."""

import math
from collections.abc import Iterator

from agents.evaluation.capacity import CRITERIA, Capacity, CapacityResult
from agents.evaluation.points import NOBODY_SERVED
from agents.reporting.grid import Grid, Head, Part
from engine.device.bounds import bound_note

CRITERION_TEXT = {
    "paper": "median TTFT < 0.5 s and p99 TBT of each tier within its deadline",
    "sound": "also p99 TTFT < 10 s and no growing queue",
}

HEADS = (
    Head("policy", "name"),
    Head("req/s"),
    Head("over seeds", "number", 1),
    Head("gain"),
    Head("limited by", "prose", 2),
)


def _mean_rate(row: Capacity, lowest: float) -> str:
    """The mean capacity, and that it is a bound where the search found no more."""
    if _is_unknown(row):
        return "-"
    if set(row.bounds) == {"below"}:
        return f"< {lowest:.3f}"
    # A capacity below the lowest rate counts as 0, which is a lower bound, too.
    return f"{'' if set(row.bounds) == {'exact'} else '>= '}{row.capacity.mean:.3f}"


def _is_unknown(row: Capacity) -> bool:
    """Whether every run ended before anybody was served."""
    return row.limited_by == (NOBODY_SERVED,) and not any(row.by_seed)


def _seed_rates(row: Capacity, lowest: float) -> str:
    """The least and the largest capacity of the seeds."""
    if _is_unknown(row):
        return "-"
    if set(row.bounds) == {"below"}:
        return f"< {lowest:.2f}"
    low, high = min(row.by_seed), max(row.by_seed)
    last = f"{'>= ' if 'above' in row.bounds else ''}{high:.2f}"
    return last if low == high else f"{f'{low:.2f}' if low else f'< {lowest:.2f}'} to {last}"


def _gain(row: Capacity) -> str:
    """The gain with its interval; at a limit of the search only what it is at least or at most."""
    gain = row.gain
    if not gain or row.gain_bound == "open":
        return "-"
    text = f"{gain.mean:+.1%}"
    if row.gain_bound != "exact":
        return f"{'>=' if row.gain_bound == 'at least' else '<='} {text}"
    return f"{text} [{gain.low:+.1%}, {gain.high:+.1%}]" if math.isfinite(gain.low) else text


AT_LIMIT = "At the limits of the search: capacities are bounds (>=, <), gains too, and have no interval (-: not known)."


def came_of_asked(result: CapacityResult) -> str:
    """One line: how far the realised arrival rates of the runs were from the asked ones; "" where there are none."""
    points = [point for task in result.points for point in task.points]
    off = [point.arrival_rate / point.rate - 1.0 for point in points if point.arrival_rate]
    if not off:
        return ""
    mean, low, high = sum(off) / len(off), min(off), max(off)
    return f"Rates are asked ones; arrivals came {mean:+.1%} off on average ({low:+.1%} to {high:+.1%} over the runs)."


def capacity_grids(result: CapacityResult) -> list[Grid]:
    """The capacities, one table per criterion."""
    grids, lowest = [], result.lowest
    for criterion in CRITERIA:
        rows = [
            (
                row.policy,
                _mean_rate(row, lowest),
                _seed_rates(row, lowest),
                _gain(row),
                "; ".join(row.limited_by) or "-",
            )
            for row in result.rows
            if row.criterion == criterion
        ]
        title = f"Capacity, {criterion} criterion: {CRITERION_TEXT[criterion]}"
        grids.append(Grid(HEADS, [Part(rows, title)]))
    return grids


def capacity_remarks(result: CapacityResult) -> Iterator[str]:
    """What the tables mean, a line each."""
    yield from result.notes
    if came := came_of_asked(result):
        yield came
    yield bound_note(result.bound, "this fleet" if "fleet" in result.config else "this device")
    yield f"Gain over {result.reference}, same traces, with a 95 % paired interval."
    if any(set(row.bounds) != {"exact"} for row in result.rows):
        yield AT_LIMIT
