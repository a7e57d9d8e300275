"""What routers are trained and judged on: fleets of equal replicas or of two speeds, at a load, with old reports."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np

import baselines
from agents.learning.learned.router import LearnedRouter
from agents.learning.learned.router_bundle import RouterBundle
from baselines import routers
from engine.cluster.features import REPLICA_NAMES, REQUEST_NAMES, encode
from engine.cluster.record import ClusterRecord
from engine.cluster.router import Age, Router
from engine.cluster.seats import Kind, Seat
from engine.cluster.simulate import simulate_cluster
from engine.cluster.state import RouterMemory, RouterView
from engine.demand.predictions import predict
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.device.memory import default_server
from engine.server.policy import Policy
from engine.spec import Spec

PROFILE = "rtx6000ada-mistral-7b"
SPEED = 3
"""How many times as fast every other replica of a mixed fleet is; it has twice the KV and 256 seats."""
FAST = Kind(profile=f"{PROFILE}:speed={SPEED}", server="num_blocks=2x,max_num_seqs=256")


class World(NamedTuple):
    """Where a router is judged."""

    replicas: int
    is_mixed: bool
    """Whether every other replica is a FAST one."""
    load: float
    """Requests/s for each replica of PROFILE's speed."""
    policy: str
    """What schedules on each replica."""
    age: float
    """s, from one report of the replicas to the next."""

    @property
    def fleet(self) -> tuple[Seat, ...]:
        """The replicas, the fast ones last."""
        return _fleet(self.replicas, self.is_mixed, self.policy)

    @property
    def speeds(self) -> int:
        """Sum of the speeds of the replicas."""
        fast = self.replicas // 2 if self.is_mixed else 0
        return self.replicas + (SPEED - 1) * fast

    @property
    def rate(self) -> float:
        """Requests/s of the whole fleet."""
        return self.load * self.speeds


@cache
def _fleet(replicas: int, is_mixed: bool, policy: str) -> tuple[Seat, ...]:
    model = load_profile(PROFILE)
    usual, fast = Seat(policy, model, default_server(model)), replicas // 2 if is_mixed else 0
    return (usual,) * (replicas - fast) + (FAST.seat(usual),) * fast


def all_worlds(
    replicas: Sequence[int], loads: Sequence[float], policies: Sequence[str], ages: Sequence[float]
) -> list[World]:
    """Every combination, with equal replicas and with mixed ones."""
    return [World(*one) for one in product(replicas, (False, True), loads, policies, ages)]


class Trial(NamedTuple):
    """A router, as a spec without an age or as a bundle, on one trace of a world."""

    router: str | RouterBundle
    world: World
    requests: int
    seed: int


def aged(router: str | RouterBundle, age: float) -> Router:
    """The router with reports of an age; one that sees none in any case stays as it is."""
    if isinstance(router, RouterBundle):
        return LearnedRouter("candidate", router, age)
    takes_age = hasattr(routers.make(router), "age")
    return routers.make(str(Spec.parse(router).with_setting("age", age)) if takes_age else router)


def mean_ttft_s(trial: Trial) -> float:
    """Mean TTFT of a trace, s."""
    return mean_of(served(aged(trial.router, trial.world.age), trial))


def mean_of(record: ClusterRecord) -> float:
    """Mean TTFT of a run that served every request, s."""
    total = sum(float((one.ledger["first_token"] - one.request["arrival"]).sum()) for one in record.records)
    return total / len(record.requests)


def served(router: Router, trial: Trial, channel: str = "") -> ClusterRecord:
    """The run of a trial's trace behind a router.

    Args:
        router: in the place of the trial's own.
        trial: world and trace.
        channel: of the predictions that the requests have (`engine.demand.channels`); empty: none.
    """
    world = trial.world
    fleet, policies = world.fleet, [_policy(seat.policy) for seat in world.fleet]
    requests = Workload(rate=world.rate, num_requests=trial.requests).generate(trial.seed)
    if channel:
        requests = predict(requests, channel, trial.seed)
    models, configs = [seat.profile for seat in fleet], [seat.config for seat in fleet]
    return simulate_cluster(router, policies, requests, models, configs, seed=trial.seed & 0xFFFF)


@cache
def _policy(spec: str) -> Policy:
    return baselines.make(spec)


class Spread(NamedTuple):
    """How large features are, over all decisions that were watched."""

    mean: np.ndarray  # float64[REPLICA_NAMES]
    std: np.ndarray  # float64[REPLICA_NAMES], of the replicas of a decision around their mean


@dataclass(frozen=True)
class _Watcher(Router):
    """Does what another router does, and notes the features."""

    other: Router = field(default_factory=Router)
    age: Age = 0.0
    name = "watcher"

    def __post_init__(self) -> None:
        """Nothing seen yet."""
        object.__setattr__(self, "seen", [])

    def memory(self, replicas: int) -> RouterMemory:
        """That of the other."""
        return self.other.memory(replicas)

    def route(self, view: RouterView, memory: RouterMemory) -> int:
        """Where the other would."""
        features = np.zeros((len(view.replica), len(REPLICA_NAMES)), np.float32)
        encode(view, features, np.zeros(len(REQUEST_NAMES), np.float32))
        vars(self)["seen"].append(features)
        return self.other.route(view, memory)


def watch(trials: Sequence[Trial]) -> Spread:
    """How large the features are behind the routers of trials, and how far replicas are apart in them."""
    means, squares = [], []
    for trial in trials:
        watcher = _Watcher(aged(trial.router, 0.0), trial.world.age)
        served(watcher, trial)
        seen = np.array(vars(watcher)["seen"], np.float64)
        means.append(seen.mean((0, 1)))
        squares.append(((seen - seen.mean(1, keepdims=True)) ** 2).mean((0, 1)))
    return Spread(np.mean(means, 0), np.maximum(np.sqrt(np.mean(squares, 0)), 1e-3))
