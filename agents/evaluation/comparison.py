"""From finished cells to a comparison: means over seeds, paired differences, one verdict per policy and load."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.evaluation.statistics import Interval, mean_interval, paired_interval

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
HIGHER_IS_BETTER = ("attainment", "goodput", "throughput")

SHARES = ("attainment", "share", "kv_use", "jain_index")
"""Ends of the keys of numbers that are at most 1."""

VERDICTS = ("unknown", "stable", "starving", "late", "saturated")
"""What `engine.runs.report` says of a load, from good to bad."""


def value_of(report: dict[str, Any], key: str) -> float:
    """A number of a report by its key, `tiers.strict.p99_itl_ms` for one of a tier; nan where there is none."""
    node: Any = report
    while key not in node:  # a key of a number may itself have a point, as p99.9_ttft_ms
        part, _, key = key.partition(".")
        node = node[part]
    return math.nan if node[key] is None else float(node[key])


def compared_keys(cells: list[dict[str, Any]]) -> list[str]:
    """Keys of the numbers that are compared, those of the tiers included."""
    tiers = cells[0]["report"]["tiers"] if cells else {}
    limited = bool(cells) and cells[0]["report"]["request_goodput"] is not None
    compared = [key for key in COMPARED if limited or key != "request_goodput"]
    return [*compared, *(f"tiers.{tier}.{key}" for tier in tiers for key in TIER_COMPARED)]


def _of(cells: list[dict[str, Any]], policy: str, load: float | None) -> list[dict[str, Any]]:
    return [cell["report"] for cell in cells if cell["policy"] == policy and cell["load"] == load]


def _mean(reports: list[dict[str, Any]], key: str) -> Interval:
    """Mean over seeds; the interval is cut to what is possible: no number is negative, no share above 1."""
    found = mean_interval([value_of(report, key) for report in reports])
    most = 1.0 if key.endswith(SHARES) else math.inf
    return Interval(found.mean, max(found.low, 0.0), min(found.high, most), found.n)


def summary(policies: Sequence[str], loads: Loads, cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean over seeds with a 95 % interval for every policy and load, and how many seeds meet each criterion."""
    rows = []
    for load in loads:
        for policy in policies:
            reports = _of(cells, policy, load)
            verdicts = Counter(report["capacity"]["verdict"] for report in reports)
            keys = [*compared_keys(cells), *SUMMARISED]
            rows.append(
                {
                    "policy": policy,
                    "load": load,
                    "seeds": len(reports),
                    "paper": sum(report["capacity"]["paper"] for report in reports),
                    "sound": sum(report["capacity"]["sound"] for report in reports),
                    # The commonest; of equally common ones the worst.
                    "verdict": max(VERDICTS, key=lambda v: (verdicts[v], VERDICTS.index(v))),
                    "metrics": {k: _mean(reports, k).to_dict() for k in keys},
                }
            )
    return rows


def _judge(key: str, difference: Interval) -> str:
    if not difference.excludes_zero:
        return "no clear difference"
    return "better" if (difference.mean > 0.0) == any(word in key for word in HIGHER_IS_BETTER) else "worse"


def paired(policies: Sequence[str], loads: Loads, cells: list[dict[str, Any]], to: str) -> list[dict[str, Any]]:
    """Differences to the policy `to`, seed by seed on the same trace, with 95 % intervals."""
    rows = []
    for load in loads:
        base = _of(cells, to, load)
        for policy in policies:
            if policy == to:
                continue
            reports = _of(cells, policy, load)
            for key in compared_keys(cells):
                values = [value_of(report, key) for report in reports]
                reference = [value_of(report, key) for report in base]
                difference = paired_interval(values, reference)
                mean = float(np.mean(reference))
                relative = difference.mean / mean if mean else math.nan
                rows.append(
                    {
                        "policy": policy,
                        "load": load,
                        "metric": key,
                        "difference": difference.to_dict(),
                        "relative": relative if math.isfinite(relative) else None,
                        "judgement": _judge(key, difference),
                    }
                )
    return rows
