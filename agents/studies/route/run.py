"""Run routers in front of a fleet of replicas, every router on the same arrivals, and compare them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from agents.evaluation.comparison import common_verdict, compared, over_seeds
from agents.evaluation.fleet import channel_of, serve_fleet
from agents.evaluation.setup import Setup, requests_of, run_cells
from agents.routers import resolve_router, router_fingerprint
from agents.studies.route.presence import presence_of
from agents.studies.route.records import Cell, Contestant, Difference, ReplicaNumbers, Routes, Standing, middle
from agents.work.cells import kept_cells
from agents.work.progress import OnProgress, unseen
from agents.work.provenance import config_hash, versions
from engine.cluster.record import ClusterRecord, ClusterReport
from engine.cluster.seats import Seat, described
from engine.errors import InputError

COMPARED = (
    *("median_ttft_ms", "mean_ttft_ms", "p99_ttft_ms", "max_wait_s", "mean_e2el_ms", "slo_attainment", "slo_goodput"),
    *("output_throughput", "jain_replicas", "imbalance"),
)
"""Keys of a report that are summarised and compared, with the p99 TBT of each tier."""
SUMMARISED = ("arrival_rate", "completed", "unfinished", "dropped", "evictions", "busy_share", "kv_use", "duration")
"""Keys that are only summarised."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Which routers in front of what."""

    routers: tuple[str, ...]
    """Specs of the routers; the others are compared with the first."""
    fleet: tuple[Seat, ...]
    """The replicas."""
    setup: Setup
    """Their policies, the requests and the seeds."""
    loads: tuple[float | None, ...]
    """Requests/s of the whole fleet; None: the recorded times of the trace."""

    def __post_init__(self) -> None:
        """Check what the parts do not check themselves.

        Raises:
            InputError: no router or one twice, no load or one twice, a closed loop, or policies of which each wants
                other predictions.
        """
        if not self.routers:
            raise InputError("routers: expected at least one, got none")
        for router in self.routers:
            resolve_router(router)
            if self.routers.count(router) > 1:
                raise InputError(f"routers: expected each once, got {router!r} twice")
        if not self.loads or len(set(self.loads)) < len(self.loads):
            raise InputError(f"rates: expected each load once, got {self.loads}")
        if self.setup.source.closed_loop:
            raise InputError(f"route: expected an open loop, got {self.setup.source.closed_loop}")
        channel_of(self.setup, self.setup.policies)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; two with the same form have the same cells."""
        fingerprints = dict(zip(self.setup.labels, self.setup.to_dict()["policies"], strict=True))
        own: dict[str, Any] = {"routers": [router_fingerprint(r) for r in self.routers], "loads": list(self.loads)}
        own["fleet"] = [seat.to_dict() | {"policy": fingerprints[seat.policy]} for seat in self.fleet]
        return self.setup.to_dict() | own

    def digest(self) -> str:
        """16 hexadecimal digits of the SHA-256 of the JSON form."""
        return config_hash(self.to_dict())

    def serve(self, router: str, load: float | None, seed: int) -> tuple[ClusterRecord, ClusterReport]:
        """Serve the requests of one load and seed behind one router.

        Raises:
            InputError: the requests do not fit the servers.
            PolicyError: the policy or the router broke the rules.
        """
        return serve_fleet(self.setup, resolve_router(router), self.fleet, load, seed)


class Task(NamedTuple):
    """One router at one load with one seed."""

    routing: Routing
    router: str
    load: float | None
    seed: int

    @property
    def key(self) -> tuple[str, float | None, int]:
        """That of its cell."""
        return self.router, self.load, self.seed


def run_task(task: Task) -> Cell:
    """Simulate one cell."""
    record, report = task.routing.serve(*task.key)
    own = {"jain_replicas": report.jain_replicas, "imbalance": report.imbalance}
    return Cell(
        router=task.router,
        load=task.load,
        seed=task.seed,
        trace=requests_of(task.routing.setup.source, task.load, task.seed).digest(),
        report=report.fleet.to_dict() | own,
        replicas=tuple(_replicas(record, report)),
        presence=presence_of(record) if (task.load, task.seed) == (middle(task.routing.loads), 0) else None,
    )


def _replicas(record: ClusterRecord, report: ClusterReport) -> Iterator[ReplicaNumbers]:
    """The numbers of each replica."""
    end = max(float(one.row["now"][0]) for one in record.records)
    for one, found in zip(record.records, report.replicas, strict=True):
        yield ReplicaNumbers(
            policy=one.policy,
            requests=len(one.requests),
            mean_ttft_ms=1000.0 * found.ttft.mean,
            p99_ttft_ms=1000.0 * found.ttft.p99,
            busy_share=float(one.row["busy"][0]) / end,
            kv_use=found.kv_use,
            evictions=found.evictions,
            max_waiting=found.max_waiting,
        )


def run_routing(
    routing: Routing,
    *,
    workers: int = 1,
    folder: Path | None = None,
    resume: bool = False,
    progress: OnProgress = unseen,
) -> Routes:
    """Run every cell and put the comparison together.

    Args:
        routing: what to run.
        workers: processes; the result is the same for any number.
        folder: keep finished runs in cells.jsonl there.
        resume: take what this file already has.
        progress: called after each run.

    Raises:
        InputError: bad input, or kept runs of another configuration.
        PolicyError: the policy or a router broke the rules.
    """
    routing.setup.check(routing.loads[0])
    tasks = {task.key: task for task in _tasks(routing)}
    with kept_cells(folder and folder / "cells.jsonl", routing.digest(), Cell, resume) as file:
        on_cell = partial(progress, "runs")
        cells = run_cells(routing.setup, run_task, tasks, file, workers=workers, on_cell=on_cell)
    return _compared(routing, cells)


def _tasks(routing: Routing) -> Iterator[Task]:
    """The cells, in the order in which they are listed."""
    for load in routing.loads:
        for seed in range(routing.setup.seeds):
            for router in routing.routers:
                yield Task(routing, router, load, seed)


def _compared(routing: Routing, cells: list[Cell]) -> Routes:
    by_place: dict[tuple[str, float | None], list[Cell]] = {}
    for cell in cells:
        by_place.setdefault((cell.router, cell.load), []).append(cell)
    first, *others = routing.routers
    keys = [*COMPARED, *(f"tiers.{tier}.p99_itl_ms" for tier in cells[0].tiers)]
    return Routes(
        config=routing.to_dict(),
        config_hash=routing.digest(),
        reference=first,
        fleet=described(routing.fleet),
        replicas=len(routing.fleet),
        seeds=routing.setup.seeds,
        versions=versions(),
        routers=tuple(map(_described, routing.routers)),
        standings=tuple(
            _standing(by_place[router, load], keys) for load in routing.loads for router in routing.routers
        ),
        differences=tuple(
            Difference(router, load, key, *compared(key, by_place[router, load], by_place[first, load]))
            for load in routing.loads
            for router in others
            for key in keys
        ),
        cells=tuple(cells),
        notes=tuple(_notes(routing)),
    )


def _standing(cells: list[Cell], keys: list[str]) -> Standing:
    metrics = {key: over_seeds(cells, key) for key in (*keys, *SUMMARISED)}
    return Standing(cells[0].router, cells[0].load, common_verdict(cells), metrics)


def _described(router: str) -> Contestant:
    made = resolve_router(router)
    return Contestant(router, made.source, made.sees, made.evidence, made.report_s, router_fingerprint(router))


def _notes(routing: Routing) -> Iterator[str]:
    setup = routing.setup
    yield setup.source.seed_note
    yield from setup.training_remarks(routing.loads[0])
    if setup.seeds == 1:
        yield "One seed: there are no intervals; run more seeds before believing a difference."
    if aged := [f"{router} {age:g} s" for router in routing.routers if (age := resolve_router(router).report_s) > 0.0]:
        yield f"Reports of the replicas as old as up to: {', '.join(aged)}; the other routers see them as they are."
    yield from filter(None, (resolve_router(router).remark(len(routing.fleet)) for router in routing.routers))
