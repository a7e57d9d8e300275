"""From the runs over a suite to the score of every policy, and to what it breaks.

The score of a run is 100 x sqrt(g x t): g is its goodput over the best goodput of the references (sarathi, slai,
vllm_v1, slackfit) on the same requests, t the shortest mean TTFT of the references over its own, at most MOST_TTFT. A
policy with as much goodput as the best reference and as short a mean TTFT has 100; one that nobody gets a token from
has 0. Both factors are ratios, so devices of any speed and loads of any height count alike, and a scenario in which
all do equally well moves nothing. The total is the mean over the scenarios.

What it does not say: the mean hides a scenario that is lost among many that are won, which the verdicts name;
goodput and TTFT weigh the same, which is a choice; beyond saturation mean TTFT is a matter of who is left to wait, and
t of how long the run was; and a tier that is late shows only as far as its requests count in goodput.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from agents.evaluation.points import Point
from agents.evaluation.standing import ByPolicy, numbers, stand
from agents.evaluation.statistics import mean_interval, paired_interval
from agents.studies.score.records import (
    KEEPERS,
    MOST_TTFT,
    PACE,
    REFERENCES,
    Cell,
    Standing,
    Total,
    World,
)
from engine.runs.distribution import finite
from engine.runs.report import KEPT_UP_SHARE

FEASIBLE_ATTAINMENT = 0.5
"""Somebody has to meet the deadlines of this share of the requests, or nobody can be judged by them."""


def by_scenario(cells: Sequence[Cell]) -> dict[str, dict[str, list[Point]]]:
    """The runs of every scenario, by policy, each by seed."""
    found: dict[str, dict[str, list[Point]]] = {}
    for cell in cells:
        found.setdefault(cell.scenario, {}).setdefault(cell.policy, []).append(cell.point)
    return found


def is_feasible(found: ByPolicy, overload: bool) -> bool:
    """Whether some policy serves a scenario: it keeps up and meets the deadlines of half the requests.

    Args:
        found: its runs.
        overload: whether more may come than anybody serves; then keeping up is not asked.
    """
    return any(
        mean_interval(numbers(points, "slo_attainment")).mean >= FEASIBLE_ATTAINMENT
        and (overload or mean_interval(numbers(points, "kept_up_share")).mean >= KEPT_UP_SHARE)
        for points in found.values()
    )


def is_saturated(found: ByPolicy) -> bool:
    """Whether no reference meets the sound criterion with more than half of the seeds."""
    return not any(2 * sum(point.sound for point in found[name]) > len(found[name]) for name in REFERENCES)


def score(found: ByPolicy, policy: str) -> list[float]:
    """The score of a policy in a scenario, for each seed."""
    goods = [max(seed) for seed in zip(*(_goodput(found[name]) for name in REFERENCES), strict=True)]
    waits = [min(seed) for seed in zip(*(_wait(found[name]) for name in REFERENCES), strict=True)]
    rows = zip(_goodput(found[policy]), _wait(found[policy]), goods, waits, strict=True)
    return [_score(good, wait, best, least) for good, wait, best, least in rows]


def _score(good: float, wait: float, best: float, least: float) -> float:
    share = good / best if best > 0.0 else 1.0
    return 100.0 * math.sqrt(share * min(MOST_TTFT, least / wait if wait > 0.0 else 1.0))


def _goodput(points: Sequence[Point]) -> list[float]:
    return [0.0 if math.isnan(value) else value for value in numbers(points, "slo_goodput")]


def _wait(points: Sequence[Point]) -> list[float]:
    """Mean TTFT, ms; infinite where nobody got a token."""
    return [math.inf if math.isnan(value) else value for value in numbers(points, "mean_ttft_ms")]


def kept_tiers(found: ByPolicy, deadlines: Mapping[str, float]) -> tuple[str, ...]:
    """The tiers whose deadline SLAI or slackfit keeps."""
    late = [set(stand(name, REFERENCES, found, deadlines)["late"]) for name in KEEPERS]
    return tuple(tier for tier in deadlines if tier not in set.intersection(*late))


def standings_of(world: World, found: ByPolicy) -> Iterator[Standing]:
    """Every policy in a scenario.

    Args:
        world: what it asks for.
        found: its runs.
    """
    plain = {policy: stand(policy, REFERENCES, found, world.deadlines) for policy in found}
    pace = math.nan if world.saturated else plain[PACE]["mean_ttft_ms"].mean
    for policy, row in plain.items():
        yield Standing(
            scenario=world.scenario,
            score=mean_interval(score(found, policy)),
            lost=tuple(tier for tier in row["late"] if tier in world.kept),
            slower=finite(row["mean_ttft_ms"].mean / pace - 1.0),
            **row,
        )


def totals_of(runs: Mapping[str, ByPolicy], standings: Sequence[Standing]) -> Iterator[Total]:
    """Every policy over all scenarios.

    Args:
        runs: by scenario and policy.
        standings: how they did.
    """
    policies = list(dict.fromkeys(row.policy for row in standings))
    scores = {policy: _by_seed([score(found, policy) for found in runs.values()]) for policy in policies}
    for policy in policies:
        own = [row for row in standings if row.policy == policy]
        outcomes = Counter(row.outcome for row in own)
        yield Total(
            policy=policy,
            score=mean_interval(scores[policy]),
            against=paired_interval(scores[policy], scores[PACE]),
            scenarios=len(own),
            wins=outcomes["wins"],
            loses=outcomes["loses"],
            lost=tuple(f"{row.scenario}: {tier}" for row in own for tier in row.lost),
            behind=_where(own, "is_behind"),
            slower=_where(own, "is_slower"),
        )


def _where(rows: Sequence[Standing], what: str) -> tuple[str, ...]:
    """The scenarios in which something is true of a policy."""
    return tuple(row.scenario for row in rows if getattr(row, what))


def _by_seed(scores: Sequence[Sequence[float]]) -> list[float]:
    """The mean over the scenarios, for each seed."""
    return [sum(seed) / len(seed) for seed in zip(*scores, strict=True)]
