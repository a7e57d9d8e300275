"""Capacity: the largest arrival rate at which a policy meets a criterion, for both criteria of `engine.runs.metrics`.

By bisection, or on a grid of rates. Both take it that a criterion which fails at one rate fails at every higher one;
on a grid, the capacity is the last rate before the first failure.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from agents.evaluation.setup import OnCell, Setup, requests_of, run_cells
from agents.evaluation.statistics import mean_interval, paired_interval
from agents.work.provenance import versions
from engine.errors import InputError
from engine.runs.metrics import Report, summarize
from engine.runs.report import KEPT_UP_SHARE, MEDIAN_TTFT_LIMIT_S, P99_TTFT_LIMIT_S

FORMAT = "llmsched-capacity/2"
CRITERIA = ("paper", "sound")

Cell = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Search(Setup):
    """Whose capacity to find, and where to look for it; gains are relative to the reference."""

    rates: tuple[float, ...] | None = None
    """Grid of rates (requests/s), ascending; None: bisection."""
    low: float = 0.1
    """Bisection: lowest rate, requests/s."""
    high: float = 4.0
    """Bisection: highest rate, requests/s."""
    tolerance: float = 0.01
    """Bisection: width of the last bracket, requests/s."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: no seed, an empty bracket, a tolerance that is not positive, unsorted rates, or a reference
                that is not among the policies.
        """
        super().__post_init__()
        if loop := self.source.closed_loop:
            raise InputError(f"capacity: expected an open loop, in which rates can be set; got {loop}")
        if not 0.0 < self.low < self.high < math.inf:
            raise InputError(f"low, high: expected 0 < low < high, got {self.low} and {self.high}")
        if not 0.0 < self.tolerance < math.inf:
            raise InputError(f"tolerance: expected requests/s > 0, got {self.tolerance}")
        if self.rates is not None and any(b <= a for a, b in zip(self.rates, self.rates[1:], strict=False)):
            raise InputError(f"rates: expected them in ascending order, got {self.rates}")

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return super().to_dict() | {
            "rates": None if self.rates is None else list(self.rates),
            "bisection": None if self.rates is not None else [self.low, self.high, self.tolerance],
        }


class Task(NamedTuple):
    """One policy and seed: at one rate of a grid, or (rate None) a bisection."""

    search: Search
    policy: str
    seed: int
    rate: float | None


NOBODY_SERVED = "nobody served before the run ended"
"""Why no criterion is met where a run shows nothing."""
SOUND_ONLY = ("p99 TTFT", "growing queue")
"""Conditions that only the sound criterion has."""


def failures(report: Report) -> list[str]:
    """The conditions of the sound criterion that a run does not meet, those of the paper's first."""
    if report.verdict == "unknown":
        return [NOBODY_SERVED]
    found = [] if report.ttft.p50 < MEDIAN_TTFT_LIMIT_S else ["median TTFT"]
    found += [f"p99 TBT {tier.name}" for tier in report.tiers if not tier.keeps_tbt]
    found += [] if report.ttft.p99 < P99_TTFT_LIMIT_S else ["p99 TTFT"]
    return found + ([] if report.kept_up_share >= KEPT_UP_SHARE else ["growing queue"])


def measure(search: Search, policy: str, seed: int, rate: float) -> Cell:
    """Simulate one rate: whether it meets each criterion, what fails, and the numbers behind it."""
    record = search.serve(policy, rate, seed)
    report = summarize(record, warmup_s=search.warmup_s)
    data = report.to_dict()
    return {
        "rate": rate,
        "arrival_rate": data["arrival_rate"],
        "paper": report.paper,
        "sound": report.sound,
        "failures": failures(report),
        "trace": requests_of(search.source, rate, seed).digest(),
        "median_ttft_ms": data["median_ttft_ms"],
        "p99_ttft_ms": data["p99_ttft_ms"],
        "p99_itl_ms": {name: tier["p99_itl_ms"] for name, tier in data["tiers"].items()},
        "kept_up_share": data["kept_up_share"],
        "slo_goodput": data["slo_goodput"],
        "iterations": report.iterations,
    }


def run_task(task: Task) -> Cell:
    """The points of one task, by rate."""
    search, points = task.search, {}

    def meets(criterion: str, rate: float) -> bool:
        if rate not in points:
            points[rate] = measure(search, task.policy, task.seed, rate)
        return bool(points[rate][criterion])

    if task.rate is not None:
        meets("paper", task.rate)
    else:
        for criterion in CRITERIA:
            low, high = search.low, search.high
            if not meets(criterion, low) or meets(criterion, high):
                continue
            while high - low > search.tolerance:
                middle = 0.5 * (low + high)
                low, high = (middle, high) if meets(criterion, middle) else (low, middle)
    cell = {"policy": task.policy, "seed": task.seed, "rate": task.rate}
    return cell | {"points": [points[rate] for rate in sorted(points)]}


def gain_bound(ours: Sequence[str], base: Sequence[str]) -> str:
    """What a gain is where searches ended at a limit, from the bounds of the policy and of the reference by seed.

    Returns:
        `exact`; `at least` (the policy sustains more than the highest rate, or the reference less than the lowest one),
        `at most` (the other way round); `open` where both are true of some seeds.
    """
    least, most = ("above" in high or "below" in low for high, low in ((ours, base), (base, ours)))
    return ("open" if most else "at least") if least else ("at most" if most else "exact")


def _key(cell: Cell) -> tuple[str, int, float | None]:
    return cell["policy"], cell["seed"], cell["rate"]


def capacity_of(points: Sequence[Cell], criterion: str) -> tuple[float, str, str]:
    """Read a capacity from measured points.

    Returns:
        Rate (0 if already the lowest fails); `exact`, `below` (the lowest rate fails) or `above` (none fails); what
        fails first.
    """
    best = 0.0
    for point in sorted(points, key=lambda point: point["rate"]):
        if not point[criterion]:
            also = () if criterion == "sound" else SOUND_ONLY
            reasons = ", ".join(reason for reason in point["failures"] if reason not in also)
            return best, "exact" if best else "below", reasons
        best = point["rate"]
    return best, "above", ""


def search_capacity(
    search: Search,
    *,
    workers: int = 1,
    cells_path: Path | None = None,
    resume: bool = False,
    on_cell: OnCell | None = None,
) -> dict[str, Any]:
    """Find the capacity of every policy by both criteria.

    Args:
        search: where to look.
        workers: processes; the result is the same for any number.
        cells_path: keep finished cells in this jsonl file.
        resume: take the cells that the file already has.
        on_cell: called with (cells finished, all cells) after each one.

    Returns:
        JSON: `notes` (policies that were trained for something else),
        `rows` (policy, criterion, capacity per seed and as an interval, what limits it, gain over the
        reference and whether it is a bound: `gain_bound`), `points` (every simulated rate), `config`, `versions`.

    Raises:
        InputError: bad input, or a cells file of another configuration.
    """
    search.check((search.rates or (search.low,))[0])
    order = [
        Task(search, policy, seed, rate)
        for seed in range(search.seeds)
        for rate in search.rates or (None,)
        for policy in search.policies
    ]
    tasks = {task[1:]: task for task in order}
    cells = run_cells(
        search, run_task, tasks, _key, workers=workers, cells_path=cells_path, resume=resume, on_cell=on_cell
    )
    return {
        "format": FORMAT,
        "config": search.to_dict(),
        "config_hash": search.digest(),
        "reference": search.reference,
        "bound": search.bound((search.rates or (search.low,))[0]),
        "versions": versions(),
        "notes": search.training_remarks((search.rates or (search.low,))[0]),
        "rows": _rows(search, cells),
        "points": [
            {"policy": cell["policy"], "seed": cell["seed"], **point} for cell in cells for point in cell["points"]
        ],
    }


def _rows(search: Search, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], list[tuple[float, str, str]]] = {}
    for policy in search.policies:
        for criterion in CRITERIA:
            by_seed = (
                [p for c in cells if (c["policy"], c["seed"]) == (policy, seed) for p in c["points"]]
                for seed in range(search.seeds)
            )
            found[policy, criterion] = [capacity_of(points, criterion) for points in by_seed]
    rows = []
    for (policy, criterion), values in found.items():
        rates, bounds = [rate for rate, _, _ in values], [bound for _, bound, _ in values]
        reference = found[search.reference, criterion]
        base = [rate for rate, _, _ in reference]
        gain = None
        if policy != search.reference and all(base):
            ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
            gain = paired_interval(ratios, [1.0] * len(ratios)).to_dict()
        rows.append(
            {
                "policy": policy,
                "criterion": criterion,
                "by_seed": rates,
                "capacity": mean_interval(rates).to_dict(),
                "bounds": bounds,
                "limited_by": sorted({reason for _, _, reason in values if reason}),
                "gain": gain,
                "gain_bound": gain_bound(bounds, [bound for _, bound, _ in reference]) if gain else None,
            }
        )
    return rows
