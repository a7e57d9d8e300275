"""Replicas behind a router as what serves: the requests of one load and seed, and what nobody sustains there."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from agents.evaluation.setup import Setup
from engine.cluster.record import ClusterRecord, ClusterReport, summarize_cluster
from engine.cluster.router import Router
from engine.cluster.seats import Seat, described
from engine.cluster.simulate import simulate_cluster
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.bounds import least_seconds
from engine.device.latency import LatencyModel
from engine.errors import InputError


@dataclass(frozen=True)
class Alike:
    """Replicas that are alike."""

    count: int
    policy: str
    """What schedules on them; empty: the policy that is looked at."""
    profile: LatencyModel
    engine: EngineConfig


@dataclass(frozen=True)
class Fleet:
    """Replicas behind a router, whatever policy is looked at."""

    router: str
    """Its spec."""
    kinds: tuple[Alike, ...]

    @classmethod
    def of(cls, router: str, seats: Sequence[Seat]) -> "Fleet":
        """Of these replicas, in their order."""
        runs = [(one, sum(1 for _ in same)) for one, same in groupby(seats)]
        return cls(router, tuple(Alike(count, one.policy, one.profile, one.config) for one, count in runs))

    def seats(self, policy: str) -> tuple[Seat, ...]:
        """The replicas one by one, with this policy where they have none of their own."""
        return tuple(
            seat
            for kind in self.kinds
            for seat in (Seat(kind.policy or policy, kind.profile, kind.engine),) * kind.count
        )

    def text(self) -> str:
        """Itself in a few words."""
        return f"{described(self.seats('the policy'))}, behind {self.router}"

    def least_seconds(self, requests: Requests) -> np.ndarray:
        """Least seconds of the whole fleet for each request, float64[requests]: as if all were the replica it suits."""
        least = [least_seconds(kind.profile, kind.engine, requests) for kind in self.kinds]
        return np.asarray(np.min(least, axis=0) / sum(kind.count for kind in self.kinds))


def channel_of(setup: Setup, policies: Sequence[str]) -> str:
    """The policy whose predictions the requests have: the first that wants any, else the first.

    Raises:
        InputError: each wants others.
    """
    channels = {policy: channel for policy in policies if (channel := setup.source.channel(setup.policy(policy)))}
    if len(set(channels.values())) > 1:
        names = ", ".join(dict.fromkeys(channels.values()))
        raise InputError(f"replicas: expected policies with the same predictions, got {names}")
    return next(iter(channels), policies[0])


def serve_fleet(
    setup: Setup, router: Router, seats: Sequence[Seat], load: float | None, seed: int
) -> tuple[ClusterRecord, ClusterReport]:
    """Serve the requests of one load and seed with replicas behind a router.

    Args:
        setup: requests, and what of a run counts.
        router: decides which replica gets a request.
        seats: the replicas.
        load: requests/s of the whole fleet; None: recorded times.
        seed: of the requests, and of what the router draws.

    Raises:
        InputError: the requests do not fit the servers.
        PolicyError: a policy or the router broke the rules.
    """
    record = simulate_cluster(
        router,
        [setup.policy(seat.policy) for seat in seats],
        setup.requests_for(channel_of(setup, [seat.policy for seat in seats]), load, seed),
        [seat.profile for seat in seats],
        [seat.config for seat in seats],
        seed=seed,
        horizon_s=setup.horizon_s,
    )
    return record, summarize_cluster(record, warmup_s=setup.warmup_s, goodput=setup.goodput)
