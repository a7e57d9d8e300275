"""What a comparison of routers consists of, as records; their fields are the keys of route.json."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.evaluation.result import Reported
from agents.evaluation.statistics import Interval
from agents.studies.route.presence import Presence
from agents.work.records import LATER, OR_NAN, as_file

FORMAT = "llmsched-route/1"


def middle(loads: Sequence[float | None]) -> float | None:
    """Of several loads the one in the middle, in their order."""
    return loads[len(loads) // 2]


@dataclass(frozen=True)
class ReplicaNumbers:
    """One replica in one run."""

    policy: str
    requests: int
    """That it got."""
    mean_ttft_ms: float = field(metadata=OR_NAN)
    p99_ttft_ms: float = field(metadata=OR_NAN)
    busy_share: float = field(metadata=OR_NAN)
    """Of the fleet's run."""
    kv_use: float = field(metadata=OR_NAN)
    """Of its own run, which ends with its last request."""
    evictions: int
    max_waiting: int


@dataclass(frozen=True)
class Cell(Reported):
    """One run: a router at one load with one seed."""

    router: str
    load: float | None
    """Requests/s of the whole fleet; None: recorded times."""
    seed: int
    trace: str
    """Digest of the requests."""
    report: dict[str, Any]
    """The fleet's numbers as `Report.to_dict` writes them, with `jain_replicas` and `imbalance`."""
    replicas: tuple[ReplicaNumbers, ...]
    presence: Presence | None = field(default=None, metadata={LATER: True})
    """Of the first seed at the middle load."""

    @property
    def key(self) -> tuple[str, float | None, int]:
        """What tells cells apart."""
        return self.router, self.load, self.seed


@dataclass(frozen=True)
class Standing:
    """One router at one load, over the seeds."""

    router: str
    load: float | None
    verdict: str
    """The commonest verdict; of equally common ones the worst."""
    metrics: dict[str, Interval]
    """Means over the seeds with 95 % intervals, by key of the report."""


@dataclass(frozen=True)
class Difference:
    """How much a metric of one router differs from that of the first, seed by seed on the same arrivals."""

    router: str
    load: float | None
    metric: str
    difference: Interval
    relative: float | None
    """The mean over that of the first; None where that is 0 or nothing."""
    judgement: str
    """`better`, `worse` or `no clear difference`."""


@dataclass(frozen=True)
class Contestant:
    """What a report says about a router."""

    label: str
    source: str
    sees: str
    evidence: str
    age_s: float
    """Seconds from one report of the replicas to the next, 0: as of now."""
    fingerprint: str


@dataclass(frozen=True)
class Routes:
    """What came of it; `to_dict` is what route.json holds."""

    config: dict[str, Any]
    """Routers, fleet, requests and seeds as plain data."""
    config_hash: str
    reference: str
    """The router that the others are compared with."""
    fleet: str
    """The replicas, in a few words."""
    replicas: int
    seeds: int
    versions: dict[str, str]
    routers: tuple[Contestant, ...]
    standings: tuple[Standing, ...]
    """Means over seeds, by load and router."""
    differences: tuple[Difference, ...]
    cells: tuple[Cell, ...]
    """Every run, by load, seed, router."""
    notes: tuple[str, ...] = ()

    @property
    def loads(self) -> tuple[float | None, ...]:
        """The loads, in the order in which they were asked for."""
        return tuple(dict.fromkeys(row.load for row in self.standings))

    @property
    def watched(self) -> float | None:
        """The load in the middle, of which each replica is shown."""
        return middle(self.loads)

    def at(self, load: float | None) -> list[Standing]:
        """The standings at one load, router by router."""
        return [row for row in self.standings if row.load == load]

    def of(self, router: str, load: float | None) -> list[Cell]:
        """The runs of one router at one load."""
        return [cell for cell in self.cells if cell.router == router and cell.load == load]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return as_file(self, FORMAT)
