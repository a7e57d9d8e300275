"""From finished cells to a comparison: means over seeds, paired differences, one verdict per policy and load."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from agents.evaluation.result import VERDICTS, Cell, Difference, Summary
from agents.evaluation.statistics import Interval, mean_interval, paired_interval
from engine.runs.distribution import finite

Loads = Sequence[float | None]

COMPARED = (
    "median_ttft_ms",
    "mean_ttft_ms",
    "p99_ttft_ms",
    "p99.9_ttft_ms",
    "max_wait_s",
    "mean_e2el_ms",
    "median_tpot_ms",
    "p99_itl_ms",
    "slo_attainment",
    "ttft_attainment",
    "tbt_attainment",
    "slo_goodput",
    "request_goodput",
    "output_throughput",
)
"""Keys of a report that are summarised and compared (`request_goodput` if it was asked for); with those of
TIER_COMPARED for each tier."""
TIER_COMPARED = ("median_ttft_ms", "p99_ttft_ms", "p99_itl_ms", "slo_attainment")
SUMMARISED = (
    *(
        "arrival_rate",
        "request_throughput",
        "completed",
        "ended_by_length",
        "unfinished",
        "dropped",
        "evictions",
        "recomputed_tokens",
        "kv_use",
    ),
    *("mean_batch_requests", "mean_batch_tokens", "mean_iteration_ms", "busy_share", "jain_index"),
    *(f"prompt_quartiles.q{k}.{key}" for k in range(1, 5) for key in ("p99.9_ttft_ms", "max_wait_s")),
    *("kept_up_share", "median_normalized_latency_ms", "duration"),
)
"""Keys that are summarised but not compared."""
HIGHER_IS_BETTER = ("attainment", "goodput", "throughput", "jain")

SHARES = ("attainment", "share", "kv_use", "jain_index", "jain_replicas")
"""Ends of the keys of numbers that are at most 1."""


class Numbered(Protocol):
    """A run with numbers."""

    @property
    def verdict(self) -> str:
        """What the report says of the load, one of VERDICTS."""

    def number(self, key: str) -> float:
        """A number of the report by its key."""


def compared_keys(cells: Sequence[Cell]) -> list[str]:
    """Keys of the numbers that are compared, those of the tiers included."""
    if not cells:
        return list(COMPARED)
    limited = not math.isnan(cells[0].number("request_goodput"))
    compared = [key for key in COMPARED if limited or key != "request_goodput"]
    return [*compared, *(f"tiers.{tier}.{key}" for tier in cells[0].tiers for key in TIER_COMPARED)]


def _of(cells: Sequence[Cell], policy: str, load: float | None) -> list[Cell]:
    return [cell for cell in cells if cell.policy == policy and cell.load == load]


def over_seeds(cells: Sequence[Numbered], key: str) -> Interval:
    """Mean over seeds with a 95 % interval, cut to what is possible: no number is negative, no share above 1."""
    found = mean_interval([cell.number(key) for cell in cells])
    most = 1.0 if key.endswith(SHARES) else math.inf
    return Interval(found.mean, max(found.low, 0.0), min(found.high, most), found.n)


def summary(policies: Sequence[str], loads: Loads, cells: Sequence[Cell]) -> tuple[Summary, ...]:
    """Mean over seeds with a 95 % interval for every policy and load, and how many seeds meet each criterion."""
    keys = [*compared_keys(cells), *SUMMARISED]
    return tuple(_summary(policy, load, _of(cells, policy, load), keys) for load in loads for policy in policies)


def common_verdict(cells: Sequence[Numbered]) -> str:
    """The commonest verdict; of equally common ones the worst."""
    verdicts = Counter(cell.verdict for cell in cells)
    return max(VERDICTS, key=lambda verdict: (verdicts[verdict], VERDICTS.index(verdict)))


def _summary(policy: str, load: float | None, cells: Sequence[Cell], keys: Sequence[str]) -> Summary:
    return Summary(
        policy=policy,
        load=load,
        seeds=len(cells),
        paper=sum(cell.meets("paper") for cell in cells),
        sound=sum(cell.meets("sound") for cell in cells),
        verdict=common_verdict(cells),
        metrics={key: over_seeds(cells, key) for key in keys},
    )


def _judge(key: str, difference: Interval) -> str:
    if not difference.excludes_zero:
        return "no clear difference"
    return "better" if (difference.mean > 0.0) == any(word in key for word in HIGHER_IS_BETTER) else "worse"


def paired(policies: Sequence[str], loads: Loads, cells: Sequence[Cell], to: str) -> tuple[Difference, ...]:
    """Differences to the policy `to`, seed by seed on the same trace, with 95 % intervals."""
    keys, others = compared_keys(cells), [policy for policy in policies if policy != to]
    return tuple(
        _difference(key, _of(cells, policy, load), _of(cells, to, load))
        for load in loads
        for policy in others
        for key in keys
    )


def _difference(key: str, ours: Sequence[Cell], reference: Sequence[Cell]) -> Difference:
    return Difference(ours[0].policy, ours[0].load, key, *compared(key, ours, reference))


def compared(key: str, ours: Sequence[Numbered], reference: Sequence[Numbered]) -> tuple[Interval, float | None, str]:
    """The difference to the reference, pair by pair, the same over the reference's mean, and what is said of it."""
    theirs = [cell.number(key) for cell in reference]
    difference = paired_interval([cell.number(key) for cell in ours], theirs)
    mean = float(np.mean(theirs))
    relative = difference.mean / mean if mean else math.nan
    return difference, finite(relative), _judge(key, difference)
