"""The numbers of one episode: those of a report (`engine.runs.metrics`), as far as training looks at them."""

import math
from typing import Any

import numpy as np

from engine.config import EngineConfig
from engine.runs.distribution import Distribution
from engine.runs.metrics import gaps_of, late_gap_share
from engine.runs.times import arrival_rate_of, ratio, slo_met, ttft_of
from engine.server.state import Server


def _ms(seconds: float) -> float:
    """Milliseconds; what does not exist is always the one `math.nan`, so that equal reports compare equal."""
    return 1000.0 * seconds if math.isfinite(seconds) else math.nan


def episode_report(server: Server, config: EngineConfig, tier_names: list[str]) -> dict[str, Any]:
    """TTFT, gaps, goodput and load of one row; times in ms unless the key ends in _s.

    Every number is that of `engine.runs.metrics` for a run that ends now: who waits still has waited until now, and
    what does not exist (a percentile of no gaps) is nan.

    Args:
        server: one row.
        config: its semantics.
        tier_names: names of its tiers.
    """
    # Plain arrays: numpy takes the fields of its record arrays five times as slowly.
    row = server.visible.row.view(np.ndarray)[0]
    now, arrived = float(row["now"]), int(row["next_arrival"])
    request, ledger = (a.view(np.ndarray)[:arrived] for a in (server.visible.request, server.hidden.ledger))
    ttft = ttft_of(request, ledger, now, config.ttft_at)
    everyone = ttft if len(ttft) == arrived else ledger["prompt_done"] - request["arrival"]
    ttft_met, tbt_met = slo_met(request, ledger, everyone, request["ttft"])
    good = int(np.count_nonzero(ttft_met & tbt_met))
    waits = Distribution.of(ttft)
    report: dict[str, Any] = {
        "completed": int(row["finished"]),
        "num_requests": int(row["num_requests"]),
        "arrived": arrived,
        "arrival_rate": arrival_rate_of(request["arrival"]),
        "duration_s": now,
        "iterations": int(row["iterations"]),
        "mean_ttft_ms": _ms(waits.mean),
        "median_ttft_ms": _ms(waits.p50),
        "p99_ttft_ms": _ms(waits.p99),
        "slo_goodput": ratio(good, now),
        "slo_attainment": ratio(good, arrived),
        "evictions": int(row["evictions"]),
    }
    tiers = server.hidden.tier.view(np.ndarray)
    for k, name in enumerate(tier_names):
        gaps, totals = server.hidden.gaps[k : k + 1], tiers[k : k + 1]
        own = ledger[request["tier"] == k] if config.zero_gaps else None
        report[f"p99_itl_ms/{name}"] = _ms(gaps_of(gaps, totals, own).p99)
        report[f"late_gap_share/{name}"] = late_gap_share(gaps, totals)
    return report
