"""One load served by one policy: which criteria of capacity it meets, what fails, and the numbers behind it."""

from collections.abc import Callable
from dataclasses import dataclass

from agents.evaluation.setup import Setup, requests_of
from engine.runs.report import KEPT_UP_SHARE, MEDIAN_TTFT_LIMIT_S, P99_TTFT_LIMIT_S, Report

NOBODY_SERVED = "nobody served before the run ended"
"""Why no criterion is met where a run shows nothing."""


@dataclass(frozen=True)
class Point:
    """One rate that was simulated: whether it meets each criterion, what fails, and the numbers behind it."""

    rate: float
    """Requests/s that were asked for."""
    arrival_rate: float | None
    """Requests/s that came."""
    paper: bool
    sound: bool
    failures: tuple[str, ...]
    """Conditions of the sound criterion that are not met."""
    trace: str
    """Digest of the requests."""
    mean_ttft_ms: float | None
    median_ttft_ms: float | None
    p99_ttft_ms: float | None
    p99_itl_ms: dict[str, float | None]
    """By tier."""
    kept_up_share: float | None
    slo_goodput: float | None
    slo_attainment: float | None
    iterations: int

    def meets(self, criterion: str) -> bool:
        """Whether it meets the criterion `paper` or `sound`."""
        return self.paper if criterion == "paper" else self.sound


def failures(report: Report) -> list[str]:
    """The conditions of the sound criterion that a run does not meet, those of the paper's first."""
    if report.verdict == "unknown":
        return [NOBODY_SERVED]
    found = [] if report.ttft.p50 < MEDIAN_TTFT_LIMIT_S else ["median TTFT"]
    found += [f"p99 TBT {tier.name}" for tier in report.tiers if not tier.keeps_tbt]
    found += [] if report.ttft.p99 < P99_TTFT_LIMIT_S else ["p99 TTFT"]
    return found + ([] if report.kept_up_share >= KEPT_UP_SHARE else ["growing queue"])


def measure(setup: Setup, policy: str, seed: int, rate: float) -> Point:
    """Simulate one rate."""
    report = setup.serve(policy, rate, seed).report
    data = report.to_dict()
    return Point(
        rate=rate,
        arrival_rate=data["arrival_rate"],
        paper=report.paper,
        sound=report.sound,
        failures=tuple(failures(report)),
        trace=requests_of(setup.source, rate, seed).digest(),
        mean_ttft_ms=data["mean_ttft_ms"],
        median_ttft_ms=data["median_ttft_ms"],
        p99_ttft_ms=data["p99_ttft_ms"],
        p99_itl_ms={name: tier["p99_itl_ms"] for name, tier in data["tiers"].items()},
        kept_up_share=data["kept_up_share"],
        slo_goodput=data["slo_goodput"],
        slo_attainment=data["slo_attainment"],
        iterations=report.iterations,
    )


def bisect(meets: Callable[[float], bool], low: float, high: float, tolerance: float) -> float:
    """The largest rate that was found to meet a criterion.

    Args:
        meets: whether a rate does; tried between the ends only.
        low: taken to meet it.
        high: taken not to meet it.
        tolerance: how close the two are in the end.
    """
    while high - low > tolerance:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low
