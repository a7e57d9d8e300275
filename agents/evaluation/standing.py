"""How a policy does at one point against the best of its rivals there: the judgement that comparisons share.

A point is a load on a server; every policy served the same requests there, seed by seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agents.evaluation.points import Point
from agents.evaluation.statistics import Interval, mean_interval, paired_interval
from engine.runs.distribution import finite

BEHIND = 0.01
"""A policy is behind where it loses more than this share of the goodput of the best rival."""
OUTCOMES = ("wins", "ties", "loses")
"""What is said of a difference: its 95 % interval lies above, around or below zero."""

ByPolicy = Mapping[str, Sequence[Point]]
"""The runs at one point, by policy; those of one policy by seed."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a policy does at one point, over the seeds."""

    policy: str
    rate: float
    """Requests/s that were asked for."""
    sound: int
    """Seeds that meet the sound criterion."""
    slo_goodput: Interval
    slo_attainment: Interval
    mean_ttft_ms: Interval
    median_ttft_ms: Interval
    p99_ttft_ms: Interval
    p99_itl_ms: dict[str, Interval]
    """By tier."""
    late: tuple[str, ...]
    """Tiers whose p99 TBT, mean over the seeds, is over their deadline."""
    rival: str
    """The best of the rivals other than the policy."""
    rival_attainment: Interval
    """Share of its requests that met every deadline."""
    difference: Interval
    """Goodput, less that of the rival on the same requests."""
    relative: float | None
    """The mean difference over the rival's mean."""
    outcome: str
    """One of OUTCOMES."""

    @property
    def is_behind(self) -> bool:
        """Whether it loses more than BEHIND of the rival's goodput."""
        return self.relative is not None and self.relative < -BEHIND


def numbers(points: Sequence[Point], name: str) -> list[float]:
    """A number of each seed, nan where there is none."""
    values = [getattr(point, name) for point in points]
    return [math.nan if value is None else value for value in values]


def best_rival(rivals: Sequence[str], policy: str, found: ByPolicy) -> str:
    """The rival with the highest goodput, mean over the seeds; the policy itself if there is no other."""
    others = [rival for rival in rivals if rival != policy] or [policy]
    return max(others, key=lambda rival: mean_interval(numbers(found[rival], "slo_goodput")).mean)


def stand(policy: str, rivals: Sequence[str], found: ByPolicy, deadlines: Mapping[str, float]) -> dict[str, Any]:
    """The fields of the `Standing` of a policy at a point.

    Args:
        policy: one of those that ran.
        rivals: those of whom the best counts.
        found: every run there.
        deadlines: TBT deadline of each tier, s.
    """
    rival = best_rival(rivals, policy, found)
    ours, theirs = found[policy], numbers(found[rival], "slo_goodput")
    gaps = {name: mean_interval([_gap(point, name) for point in ours]) for name in deadlines}
    difference, base = paired_interval(numbers(ours, "slo_goodput"), theirs), mean_interval(theirs).mean
    over_seeds = ("slo_goodput", "slo_attainment", "mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms")
    return {
        "policy": policy,
        "rate": ours[0].rate,
        "sound": sum(point.sound for point in ours),
        **{name: mean_interval(numbers(ours, name)) for name in over_seeds},
        "p99_itl_ms": gaps,
        "late": tuple(name for name, gap in gaps.items() if gap.mean > 1000.0 * deadlines[name]),
        "rival": rival,
        "rival_attainment": mean_interval(numbers(found[rival], "slo_attainment")),
        "difference": difference,
        "relative": finite(difference.mean / base) if base else None,
        "outcome": _outcome(difference),
    }


def _gap(point: Point, tier: str) -> float:
    """p99 TBT of a tier, ms; nan where it has no gaps."""
    value = point.p99_itl_ms[tier]
    return math.nan if value is None else value


def _outcome(difference: Interval) -> str:
    better, same, worse = OUTCOMES
    if not difference.excludes_zero:
        return same
    return better if difference.mean > 0.0 else worse
