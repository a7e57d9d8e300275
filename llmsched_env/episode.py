"""The numbers of one episode, cheap enough to compute at every episode end in training."""

from typing import Any

import numpy as np

from engine.state import GAP_BUCKETS_PER_OCTAVE, GAP_MIN_EXPONENT, Server


def _gap_percentile_ms(counts: np.ndarray, percent: float) -> float:
    total = np.cumsum(counts)
    if total[-1] == 0:
        return 0.0
    bucket = int(np.searchsorted(total, percent / 100.0 * total[-1]))
    exponent, step = divmod(max(bucket - 1, 0), GAP_BUCKETS_PER_OCTAVE)
    upper = 2.0 ** (GAP_MIN_EXPONENT + exponent) * (1.0 + (step + 1) / GAP_BUCKETS_PER_OCTAVE)
    return float(1000.0 * upper)


def _percentile(ordered: np.ndarray, percent: float) -> float:
    """As `numpy.percentile` of sorted values, without its cost for a call; 0 if there are none."""
    if not ordered.size:
        return 0.0
    place, part = divmod(percent / 100.0 * (ordered.size - 1), 1.0)
    low, high = ordered[int(place)], ordered[min(int(place) + 1, ordered.size - 1)]
    return float(low + (high - low) * part)


def episode_report(server: Server, tier_names: list[str]) -> dict[str, Any]:
    """TTFT, gaps, goodput and load of one row; times in ms unless the key ends in _s."""
    row, first_token = server.visible.row[0], server.hidden.ledger["first_token"]
    started = first_token >= 0.0
    ttft = np.sort((first_token - server.visible.request["arrival"])[started])
    median, p99 = _percentile(ttft, 50.0), _percentile(ttft, 99.0)
    good = int(server.hidden.tier["good"].sum())
    report: dict[str, Any] = {
        "completed": int(row.finished),
        "num_requests": int(row.num_requests),
        "duration_s": float(row.now),
        "iterations": int(row.iterations),
        "mean_ttft_ms": 1000.0 * float(ttft.mean()) if ttft.size else 0.0,
        "median_ttft_ms": 1000.0 * median,
        "p99_ttft_ms": 1000.0 * p99,
        "slo_goodput": good / float(row.now) if row.now > 0.0 else 0.0,
        "good_share": good / int(row.num_requests),
        "evictions": int(row.evictions),
    }
    for k, name in enumerate(tier_names):
        tier = server.hidden.tier[k]
        gaps = int(server.hidden.gaps[k].sum())
        report[f"p99_itl_ms/{name}"] = _gap_percentile_ms(server.hidden.gaps[k], 99.0)
        report[f"late_gap_share/{name}"] = float(tier.late_gaps) / gaps if gaps else 0.0
    return report
