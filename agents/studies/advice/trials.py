"""What a policy carries: served at common loads and at those between them where its SLO is met no longer.

A load is met by the sound criterion (`engine.runs.metrics`), as in `agents.evaluation.capacity`. What a policy carries
on a trace is the load with the largest goodput, requests/s within every deadline of the SLO, of those before the first
that is not met: so TTFT counts with the deadline that the SLO has.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

from agents.evaluation.points import Point, bisect, measure
from agents.evaluation.setup import Setup
from agents.source import Source
from engine.demand.requests import Requests
from engine.errors import InputError

CRITERION = "sound"


@lru_cache(maxsize=4)
def _recorded(source: Source) -> Requests:
    """All rows of a trace at its times."""
    return source.requests(None, 0)


@dataclass(frozen=True)
class Pieces(Source):
    """A trace with recorded times, cut into pieces of `num_requests` rows: seed k stands for the k-th of them.

    Other seeds would serve the same requests at the same times again. A load stretches the times of a piece.
    """

    @property
    def number(self) -> int:
        """How many there are; rows that fill no piece are left out."""
        whole = len(_recorded(self._whole))
        return max(1, whole // min(self.num_requests or whole, whole))

    @property
    def _whole(self) -> Source:
        given = {name: getattr(self, name) for name in Source.__dataclass_fields__}
        return Source(**(given | {"num_requests": None}))

    def requests(self, rate: float | None, seed: int) -> Requests:
        """The piece of a seed.

        Raises:
            InputError: the file does not fit, or its times do not differ.
        """
        whole = _recorded(self._whole)
        rows = min(self.num_requests or len(whole), len(whole))
        part = slice((seed % self.number) * rows, (seed % self.number + 1) * rows)
        arrival = whole.arrival[part] - whole.arrival[part.start]
        if rate is not None:
            if not arrival[-1] > 0.0:
                raise InputError(f"{self.trace}: expected recorded times that differ, got one time only in a piece")
            arrival = arrival * ((rows - 1) / (rate * float(arrival[-1])))
        columns = (whole.prompt[part], whole.output[part], whole.tier[part])
        source = f"{whole.source}; requests {part.start + 1} to {part.stop}"
        return Requests.create(arrival, *columns, tiers=whole.tiers, source=source).limited(self.max_concurrency)


def pieces_of(source: Source, num_requests: int) -> Source:
    """The source of runs with so many requests."""
    if source.synthetic_arrivals:
        return replace(source, num_requests=num_requests)
    given = {name: getattr(source, name) for name in Source.__dataclass_fields__}
    return Pieces(**(given | {"num_requests": num_requests}))


class Task(NamedTuple):
    """What a trial is made of."""

    setup: Setup
    """Its policies: the one."""
    stage: int
    seed: int
    rates: tuple[float, ...]
    """Loads at which every policy is served, requests/s, ascending."""
    tolerance: float
    """How close two loads come between which the SLO is met no longer, requests/s."""
    beyond: bool = True
    """Whether it is also served at the loads beyond the first that is not met, where it carries nothing."""


@dataclass(frozen=True)
class Trial:
    """One policy on the requests of one seed, at several loads."""

    stage: int
    """Round of the search; each has traces of its own length."""
    policy: str
    seed: int
    points: tuple[Point, ...]
    """By load."""

    @property
    def key(self) -> tuple[int, str, int]:
        """What tells trials apart."""
        return self.stage, self.policy, self.seed

    @property
    def carried(self) -> Point | None:
        """The load with the largest goodput of those that are met; None: none is."""
        met = takewhile(lambda point: point.meets(CRITERION), self.points)
        best = max(met, key=lambda point: point.slo_goodput or 0.0, default=None)
        return best if best and best.slo_goodput else None

    @property
    def goodput(self) -> float:
        """Its goodput at the load that it carries, requests/s."""
        return (self.carried.slo_goodput or 0.0) if self.carried else 0.0

    @property
    def load(self) -> float:
        """The load that it carries, requests/s."""
        return self.carried.rate if self.carried else 0.0

    def at(self, rate: float) -> Point:
        """One of the common loads."""
        return next(point for point in self.points if point.rate == rate)


def run_trial(task: Task) -> Trial:
    """Serve one seed with one policy at every load, then between the last that is met and the first that is not."""
    (policy,) = task.setup.policies
    points: dict[float, Point] = {}

    def meets(rate: float) -> bool:
        if rate not in points:
            points[rate] = measure(task.setup, policy, task.seed, rate)
        return points[rate].meets(CRITERION)

    met = tuple(takewhile(meets, task.rates))
    if met and len(met) < len(task.rates):
        bisect(meets, met[-1], task.rates[len(met)], task.tolerance)
    for rate in task.rates if task.beyond else ():
        meets(rate)
    return Trial(task.stage, str(policy), task.seed, tuple(points[rate] for rate in sorted(points)))


def by_policy(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """The trials of each policy, by seed."""
    found: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        found.setdefault(trial.policy, []).append(trial)
    return found
