"""How much better a policy is than a reference on held-out traces, world by world: what the best one is chosen by.

A mean over worlds of returns would be that of the fullest one. Here each world counts by ratios to the reference, and
what is worse there counts more: no load is won at the cost of another, no mean at that of the tail or of deadlines.
"""

from collections.abc import Callable

import numpy as np

from agents.learning.heldout import Score
from engine.runs.report import Report

WEIGHTS = {"mean_ttft": 1.0, "p99_ttft": 0.25, "missed": 1.0}
"""Of the logarithms of ratios to the reference; missed is the share of requests that miss a deadline."""
LOSS_WEIGHT = 2.0
"""Weight, on top, of a longer mean TTFT."""
LATE_WEIGHT = 100.0
"""Of the share of gaps between tokens that are late, beyond the reference's: 0.1 % counts as 10 % of the TTFT."""
LEAST_MISSED = 0.01
"""Shares below this do not make ratios."""

_METRICS: dict[str, Callable[[Report], float]] = {
    "mean_ttft": lambda report: report.ttft.mean,
    "p99_ttft": lambda report: report.ttft.p99,
    "missed": lambda report: 1.0 - report.slo_attainment + LEAST_MISSED,
}


def _mean(score: Score, world: str, metric: Callable[[Report], float]) -> float:
    return float(np.mean([metric(r) for r, name in zip(score.reports, score.worlds, strict=True) if name == world]))


def relative(score: Score, reference: Score) -> dict[str, dict[str, float]]:
    """For each world the logarithms of the ratios by metric, and under ``late`` the difference of late gaps' shares."""
    found: dict[str, dict[str, float]] = {}
    for world in dict.fromkeys(score.worlds):
        ratios = {
            name: float(np.log(_mean(score, world, metric) / _mean(reference, world, metric)))
            for name, metric in _METRICS.items()
        }
        late = [_mean(one, world, lambda report: report.late_gap_share) for one in (score, reference)]
        found[world] = ratios | {"late": late[0] - late[1]}
    return found


def relative_cost(score: Score, reference: Score) -> float:
    """What is least for the best policy: the mean over worlds of weighted ratios, and what is worse on top."""
    costs = []
    for ratios in relative(score, reference).values():
        cost = sum(weight * ratios[name] for name, weight in WEIGHTS.items())
        cost += LOSS_WEIGHT * max(ratios["mean_ttft"], 0.0) + LATE_WEIGHT * max(ratios["late"], 0.0)
        costs.append(cost)
    return float(np.mean(costs))
