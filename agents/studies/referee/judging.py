"""From runs to a table: every setting against the baseline, in each scenario and over all of them.

Times are compared by ratios, as those of an idle server and of an overloaded one differ by orders of magnitude: the
geometric mean of the ratios over the seeds, and over the scenarios. It is the same whichever of two settings is the
baseline, but for the sign of its logarithm. Shares and counts, which may be zero, are compared by differences. Each
interval is that of the seeds (`agents.evaluation.statistics`); over all scenarios it is of the mean over them, seed by
seed. Of intervals with 95 %, one in twenty excludes zero where nothing differs.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from agents.evaluation.result import JUDGEMENTS
from agents.evaluation.statistics import Interval, mean_interval
from agents.studies.referee.records import DECISIVE, MEASURES, Cell, Change, Measure, Row, Total

ByVariant = Mapping[str, Sequence[Cell]]
"""The runs in a scenario, by variant; those of one variant by seed."""
Numbers = npt.NDArray[np.float64]


def by_scenario(cells: Sequence[Cell]) -> dict[str, dict[str, list[Cell]]]:
    """The runs of every scenario, by variant, each by seed."""
    found: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        found.setdefault(cell.scenario, {}).setdefault(cell.variant, []).append(cell)
    return found


def _numbers(cells: Sequence[Cell], measure: Measure) -> Numbers:
    """A number of each seed, nan where there is none."""
    return np.array([cell.numbers[measure.key] for cell in cells], np.float64)


def _steps(own: Sequence[Cell], base: Sequence[Cell], measure: Measure) -> Numbers:
    """How far a variant is from the baseline, for each seed: what may be averaged."""
    ours, theirs = _numbers(own, measure), _numbers(base, measure)
    if measure.change == "difference":
        return ours - theirs
    with np.errstate(divide="ignore", invalid="ignore"):  # what is not positive has no ratio: no interval either
        return np.log(ours / theirs)


def _changed(steps: Numbers, measure: Measure) -> Change:
    """The mean step with its interval, as it is shown."""
    found = mean_interval(steps)
    if measure.change == "ratio":
        mean, low, high = np.expm1([found.mean, found.low, found.high]).tolist()
        found = Interval(mean, low, high, found.n)
    better, worse, unclear = JUDGEMENTS
    if not found.excludes_zero:
        return Change(found, unclear)
    return Change(found, better if (found.mean > 0.0) is measure.is_good else worse)


def rows_of(scenario: str, rate: float, found: ByVariant, baseline: str) -> Iterator[Row]:
    """Every variant in a scenario.

    Args:
        scenario: its name.
        rate: requests/s.
        found: its runs.
        baseline: the variant that the others are compared with.
    """
    for variant, own in found.items():
        values = {measure.key: mean_interval(_numbers(own, measure)) for measure in MEASURES}
        steps = {measure: _steps(own, found[baseline], measure) for measure in MEASURES if variant != baseline}
        changes = {measure.key: _changed(taken, measure) for measure, taken in steps.items()}
        yield Row(scenario, rate, variant, values, changes)


def totals_of(runs: Mapping[str, ByVariant], rows: Sequence[Row], baseline: str) -> Iterator[Total]:
    """Every variant over all scenarios.

    Args:
        runs: by scenario and variant.
        rows: what they say.
        baseline: the variant that the others are compared with.
    """
    better, worse, _ = JUDGEMENTS
    for variant in dict.fromkeys(row.variant for row in rows):
        own = [row for row in rows if row.variant == variant]
        measures = MEASURES if variant != baseline else ()
        changes = {measure.key: _over_all(runs, variant, baseline, measure) for measure in measures}
        yield Total(variant, changes, _where(own, better), _where(own, worse))


def _where(rows: Sequence[Row], judgement: str) -> tuple[str, ...]:
    """The scenarios in which this is said of what counts."""
    return tuple(row.scenario for row in rows if row.changes and row.changes[DECISIVE.key].judgement == judgement)


def _over_all(runs: Mapping[str, ByVariant], variant: str, baseline: str, measure: Measure) -> Change:
    """The change of a measure, of each seed the mean over the scenarios."""
    steps = np.array([_steps(found[variant], found[baseline], measure) for found in runs.values()])
    return _changed(steps.mean(axis=0), measure)
