"""Capacity: the largest arrival rate at which a policy meets a criterion, for both criteria of `engine.runs.metrics`.

By bisection, or on a grid of rates. Both take it that a criterion which fails at one rate fails at every higher one;
on a grid, the capacity is the last rate before the first failure.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agents.evaluation.fleet import Fleet, channel_of, serve_fleet
from agents.evaluation.points import Point, bisect, measure
from agents.evaluation.setup import OnCell, Setup, run_cells
from agents.evaluation.statistics import Interval, mean_interval, paired_interval
from agents.policies import fingerprint
from agents.routers import resolve_router, router_fingerprint
from agents.work.cells import kept_cells
from agents.work.provenance import versions
from agents.work.records import as_json
from engine.demand.requests import Requests
from engine.errors import InputError
from engine.runs.serve import Run

FORMAT = "llmsched-capacity/2"
CRITERIA = ("paper", "sound")


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
    fleet: Fleet | None = None
    """Replicas behind a router, of which rates are those of all together; None: one server."""

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
            **self._fleet_as_json(),
        }

    def _fleet_as_json(self) -> dict[str, Any]:
        """The fleet as data, with what its own policies and its router were made from; nothing of one server."""
        if self.fleet is None:
            return {}
        own = sorted({kind.policy for kind in self.fleet.kinds} - {""})
        sources = [router_fingerprint(self.fleet.router), *map(fingerprint, own)]
        return {"fleet": as_json(self.fleet), "fleet_sources": sources}

    def check(self, load: float | None) -> None:
        """Find bad input before anything is written.

        Raises:
            InputError: a policy or a router that cannot be resolved, or requests that cannot be made at this load.
        """
        super().check(load)
        if self.fleet is not None:
            resolve_router(self.fleet.router)
            for policy in self.policies:
                channel_of(self, [seat.policy for seat in self.fleet.seats(policy)])

    def serve(self, policy: str, load: float | None, seed: int) -> Run:
        """Serve the requests of one load and seed with one policy, on each replica that has none of its own.

        Raises:
            InputError: the requests do not fit the server.
            PolicyError: the policy or the router broke the rules.
        """
        if self.fleet is None:
            return super().serve(policy, load, seed)
        router, seats = resolve_router(self.fleet.router), self.fleet.seats(policy)
        record, report = serve_fleet(self, router, seats, load, seed)
        return Run(record.fleet(), report.fleet)

    def least_seconds(self, requests: Requests) -> np.ndarray:
        """Seconds of what serves that each request takes at least, float64[requests]."""
        return super().least_seconds(requests) if self.fleet is None else self.fleet.least_seconds(requests)


class Task(NamedTuple):
    """One policy and seed: at one rate of a grid, or (rate None) a bisection."""

    search: Search
    policy: str
    seed: int
    rate: float | None


@dataclass(frozen=True)
class Points:
    """The rates that one task simulated."""

    policy: str
    seed: int
    rate: float | None
    """That of a grid, or None for a bisection."""
    points: tuple[Point, ...]
    """By rate."""

    @property
    def key(self) -> tuple[str, int, float | None]:
        """What tells tasks apart."""
        return self.policy, self.seed, self.rate


@dataclass(frozen=True)
class Limit:
    """Where the points of one policy, seed and criterion end."""

    rate: float
    """Requests/s, 0 if already the lowest rate fails."""
    bound: str
    """`exact`, `below` (the lowest rate fails) or `above` (none fails)."""
    reasons: str
    """What fails first."""


@dataclass(frozen=True)
class Capacity:
    """The capacity of one policy by one criterion."""

    policy: str
    criterion: str
    by_seed: tuple[float, ...]
    """Requests/s; 0 if already the lowest rate fails."""
    capacity: Interval
    """Mean over the seeds."""
    bounds: tuple[str, ...]
    """Of each seed: `exact`, `below` or `above` the rates that were tried."""
    limited_by: tuple[str, ...]
    """What fails first, over the seeds."""
    gain: Interval | None
    """Over the reference, as a share; None for the reference, or where that sustains nothing."""
    gain_bound: str | None
    """What the gain is (`gain_bound`)."""


@dataclass(frozen=True)
class CapacityResult:
    """What a search found; `to_dict` is what capacity.json holds."""

    config: dict[str, Any]
    """The search as plain data."""
    config_hash: str
    reference: str
    bound: float | None
    """Requests/s that no scheduler sustains."""
    versions: dict[str, str]
    notes: tuple[str, ...]
    """Policies that were trained for something else."""
    rows: tuple[Capacity, ...]
    points: tuple[Points, ...]
    """Every simulated rate."""

    @property
    def lowest(self) -> float:
        """The lowest rate that was tried, requests/s."""
        return float((self.config["rates"] or self.config["bisection"])[0])

    def to_dict(self) -> dict[str, Any]:
        """JSON form: every point on a line of its own."""
        points = [
            {"policy": task.policy, "seed": task.seed, **as_json(point)}
            for task in self.points
            for point in task.points
        ]
        values = {own.name: as_json(getattr(self, own.name)) for own in fields(self)}
        return {"format": FORMAT, **values, "points": points}


SOUND_ONLY = ("p99 TTFT", "growing queue")
"""Conditions that only the sound criterion has."""


def run_task(task: Task) -> Points:
    """The points of one task, by rate."""
    search = task.search
    points: dict[float, Point] = {}

    def meets(criterion: str, rate: float) -> bool:
        if rate not in points:
            points[rate] = measure(search, task.policy, task.seed, rate)
        return points[rate].meets(criterion)

    if task.rate is not None:
        meets("paper", task.rate)
    else:
        for criterion in CRITERIA:
            _search(search, partial(meets, criterion))
    return Points(task.policy, task.seed, task.rate, tuple(points[rate] for rate in sorted(points)))


def _search(search: Search, meets: Callable[[float], bool]) -> None:
    """Try rates until those that meet a criterion and those that do not are close."""
    if meets(search.low) and not meets(search.high):
        bisect(meets, search.low, search.high, search.tolerance)


def gain_bound(ours: Sequence[str], base: Sequence[str]) -> str:
    """What a gain is where searches ended at a limit, from the bounds of the policy and of the reference by seed.

    Returns:
        `exact`; `at least` (the policy sustains more than the highest rate, or the reference less than the lowest one),
        `at most` (the other way round); `open` where both are true of some seeds.
    """
    least, most = ("above" in high or "below" in low for high, low in ((ours, base), (base, ours)))
    return ("open" if most else "at least") if least else ("at most" if most else "exact")


def capacity_of(points: Iterable[Point], criterion: str) -> Limit:
    """Read a capacity from measured points."""
    best = 0.0
    for point in sorted(points, key=lambda point: point.rate):
        if not point.meets(criterion):
            also = () if criterion == "sound" else SOUND_ONLY
            reasons = ", ".join(reason for reason in point.failures if reason not in also)
            return Limit(best, "exact" if best else "below", reasons)
        best = point.rate
    return Limit(best, "above", "")


def search_capacity(
    search: Search,
    *,
    workers: int = 1,
    cells_path: Path | None = None,
    resume: bool = False,
    on_cell: OnCell | None = None,
) -> CapacityResult:
    """Find the capacity of every policy by both criteria.

    Args:
        search: where to look.
        workers: processes; the result is the same for any number.
        cells_path: keep finished cells in this jsonl file.
        resume: take the cells that the file already has.
        on_cell: called with (cells finished, all cells) after each one.

    Raises:
        InputError: bad input, or a cells file of another configuration.
    """
    lowest = (search.rates or (search.low,))[0]
    search.check(lowest)
    order = [
        Task(search, policy, seed, rate)
        for seed in range(search.seeds)
        for rate in search.rates or (None,)
        for policy in search.policies
    ]
    tasks = {task[1:]: task for task in order}
    with kept_cells(cells_path, search.digest(), Points, resume) as file:
        cells = run_cells(search, run_task, tasks, file, workers=workers, on_cell=on_cell)
    return CapacityResult(
        config=search.to_dict(),
        config_hash=search.digest(),
        reference=str(search.reference),
        bound=search.bound(lowest),
        versions=versions(),
        notes=tuple(_notes(search, lowest)),
        rows=tuple(row for policy in search.labels for row in _rows(search, cells, policy)),
        points=tuple(cells),
    )


def _notes(search: Search, lowest: float) -> Iterator[str]:
    """What there is to say before the numbers."""
    if search.fleet is not None:
        yield f"Rates are those of the whole fleet: {search.fleet.text()}."
    yield from search.training_remarks(lowest)


def _limits(search: Search, cells: Sequence[Points], policy: str, criterion: str) -> list[Limit]:
    """Where the points of each seed end."""
    by_seed = (
        [point for cell in cells if (cell.policy, cell.seed) == (policy, seed) for point in cell.points]
        for seed in range(search.seeds)
    )
    return [capacity_of(points, criterion) for points in by_seed]


def _rows(search: Search, cells: Sequence[Points], policy: str) -> Iterator[Capacity]:
    """The capacities of a policy, one by each criterion."""
    for criterion in CRITERIA:
        ours = _limits(search, cells, policy, criterion)
        reference = _limits(search, cells, str(search.reference), criterion)
        gain = None if policy == search.reference else _gain(ours, reference)
        rates, bounds = tuple(limit.rate for limit in ours), tuple(limit.bound for limit in ours)
        yield Capacity(
            policy=policy,
            criterion=criterion,
            by_seed=rates,
            capacity=mean_interval(rates),
            bounds=bounds,
            limited_by=tuple(sorted({limit.reasons for limit in ours} - {""})),
            gain=gain,
            gain_bound=gain_bound(bounds, [limit.bound for limit in reference]) if gain else None,
        )


def _gain(ours: Sequence[Limit], reference: Sequence[Limit]) -> Interval | None:
    """How much more than the reference, as a share, seed by seed; None where that sustains nothing."""
    if not all(limit.rate for limit in reference):
        return None
    ratios = [limit.rate / base.rate for limit, base in zip(ours, reference, strict=True)]
    return paired_interval(ratios, [1.0] * len(ratios))
