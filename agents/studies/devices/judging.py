"""From the cells of a device matrix to how every policy stands at every point, and what it keeps over all of them."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from agents.evaluation.points import Point
from agents.evaluation.statistics import Interval, mean_interval, paired_interval
from agents.studies.devices.records import FULL, OUTCOMES, Balance, Cell, Place, Standing
from engine.runs.distribution import finite

ByPolicy = Mapping[str, Sequence[Point]]
"""The runs at one point, by policy; those of one policy by seed."""


def standings_of(cells: Sequence[Cell], rivals: Sequence[str], deadlines: Mapping[str, float]) -> Iterator[Standing]:
    """Every policy at every point, by device, share and policy.

    Args:
        cells: every run.
        rivals: the policies of whom the best counts.
        deadlines: TBT deadline of each tier, s.
    """
    points: dict[tuple[str, float], dict[str, list[Point]]] = {}
    for cell in cells:
        points.setdefault((cell.profile, cell.share), {}).setdefault(cell.policy, []).append(cell.point)
    for (profile, share), found in points.items():
        for policy in found:
            yield _standing((profile, share), policy, _best_rival(rivals, policy, found), found, deadlines)


def _best_rival(rivals: Sequence[str], policy: str, found: ByPolicy) -> str:
    """The rival with the highest goodput, mean over the seeds; the policy itself if there is no other."""
    others = [rival for rival in rivals if rival != policy] or [policy]
    return max(others, key=lambda rival: _over_seeds(found[rival], "slo_goodput").mean)


def _numbers(points: Sequence[Point], name: str) -> list[float]:
    """A number of each seed, nan where there is none."""
    values = [getattr(point, name) for point in points]
    return [math.nan if value is None else value for value in values]


def _over_seeds(points: Sequence[Point], name: str) -> Interval:
    return mean_interval(_numbers(points, name))


def _standing(
    place: tuple[str, float],
    policy: str,
    rival: str,
    found: ByPolicy,
    deadlines: Mapping[str, float],
) -> Standing:
    ours, theirs = found[policy], _numbers(found[rival], "slo_goodput")
    gaps = {name: mean_interval([_gap(point, name) for point in ours]) for name in deadlines}
    difference, base = paired_interval(_numbers(ours, "slo_goodput"), theirs), mean_interval(theirs).mean
    return Standing(
        profile=place[0],
        policy=policy,
        share=place[1],
        rate=ours[0].rate,
        sound=sum(point.sound for point in ours),
        slo_goodput=_over_seeds(ours, "slo_goodput"),
        slo_attainment=_over_seeds(ours, "slo_attainment"),
        median_ttft_ms=_over_seeds(ours, "median_ttft_ms"),
        p99_ttft_ms=_over_seeds(ours, "p99_ttft_ms"),
        p99_itl_ms=gaps,
        late=tuple(name for name, gap in gaps.items() if gap.mean > 1000.0 * deadlines[name]),
        rival=rival,
        rival_attainment=_over_seeds(found[rival], "slo_attainment"),
        difference=difference,
        relative=finite(difference.mean / base) if base else None,
        outcome=_outcome(difference),
    )


def _gap(point: Point, tier: str) -> float:
    """p99 TBT of a tier, ms; nan where it has no gaps."""
    value = point.p99_itl_ms[tier]
    return math.nan if value is None else value


def _outcome(difference: Interval) -> str:
    better, same, worse = OUTCOMES
    if not difference.excludes_zero:
        return same
    return better if difference.mean > 0.0 else worse


def balance_of(standings: Sequence[Standing], policy: str, reference: str) -> Balance:
    """What a policy keeps, against the best rival and against the deadlines that the reference keeps."""
    own = [row for row in standings if row.policy == policy]
    outcomes = Counter(row.outcome for row in own)
    due = set(_kept(standings, reference))
    kept = set(_kept(own, policy))
    return Balance(
        policy=policy,
        points=len(own),
        full=sum(row.rival_attainment.mean >= FULL for row in own),
        wins=outcomes["wins"],
        loses=outcomes["loses"],
        behind=tuple(row.place for row in own if row.is_behind),
        deadlines=len(due),
        late=tuple(sorted(due - kept)),
    )


def _kept(standings: Sequence[Standing], policy: str) -> Iterator[Place]:
    """The places whose deadline a policy keeps."""
    for row in standings:
        if row.policy == policy:
            yield from (Place(row.profile, row.share, tier) for tier in row.p99_itl_ms if tier not in row.late)
