"""What servers that differ carry behind a router: the linear programme over classes and replicas, and by simulation.

A class of requests costs `work` seconds of a kind of replica, at the best tiling. Nobody carries more than the linear
programme allows, which says which share of each class goes where; a router that does not look at the class carries less
where kinds suit different classes, and one that does not look at the replicas less where they differ in speed. Every
replica schedules by RAD with one prompt at a time, which on these devices wastes nothing (arXiv 2508.01002).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import numpy as np

import baselines
from agents.evaluation.points import bisect
from agents.work.progress import OnProgress, unseen
from agents.work.provenance import versions
from agents.work.records import as_file
from baselines import routers
from engine.cluster.prices import seconds_of_batch
from engine.cluster.router import Router, drawn, router_kernel_of
from engine.cluster.simulate import simulate_cluster
from engine.cluster.state import RouterMemory, RouterView
from engine.config import EngineConfig
from engine.demand.requests import Requests, Tier
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.server.features import EMPTY, Features, add

FORMAT = "llmsched-region/1"
TILE = 64
"""Tokens of a GeMM tile, and decodes of a batch."""
SERVER = EngineConfig(num_blocks=400_000, max_num_seqs=4096, max_model_len=16_384)
"""So much memory that it never binds."""
UNFINISHED = 0.0125
"""A load is carried where at every replica at most this share of its requests is unfinished when the last one comes."""
_TIERS = (Tier("all", 1.0, 1e9, 1e9),)


@dataclass(frozen=True)
class RequestClass:
    """Requests that are alike."""

    name: str
    prompt: int
    """Tokens."""
    output: int
    """Tokens in the mean; uniform from 1 to twice as many."""
    share: float
    """Of all requests."""


@dataclass(frozen=True)
class Kind:
    """Replicas that are alike; times are in units of what a tile takes on the first kind."""

    name: str
    count: int
    fixed: float
    """Of each iteration."""
    per_tile: float
    chunk: int
    """Prompt tokens of an iteration."""

    @property
    def model(self) -> LatencyModel:
        """Its device."""
        return LatencyModel(self.fixed, 0.0, self.per_tile / TILE, 0.0, 0.0, tile=TILE)

    @property
    def policy(self) -> str:
        """What schedules on it."""
        return f"rad:prefills=1,chunk={self.chunk},decode_batch={TILE},tile={TILE}"

    def work(self, one: RequestClass) -> float:
        """Seconds that a request of a class needs of it: its prompt in chunks, its decodes in full batches."""
        whole, rest = divmod(one.prompt, self.chunk)
        prompt = whole * self._seconds(add(EMPTY, 0.0, self.chunk, False))
        prompt += self._seconds(add(EMPTY, 0.0, rest, False)) if rest else 0.0
        batch = EMPTY
        for _ in range(TILE):
            batch = add(batch, one.prompt, 1.0, True)
        return prompt + (one.output - 1) * self._seconds(batch) / TILE

    def _seconds(self, batch: Features) -> float:
        return seconds_of_batch(self.model, SERVER, batch)


@dataclass(frozen=True)
class World:
    """Classes of requests in front of kinds of replicas."""

    name: str
    kinds: tuple[Kind, ...]
    classes: tuple[RequestClass, ...]

    @cached_property
    def replicas(self) -> tuple[Kind, ...]:
        """One by one."""
        return tuple(kind for kind in self.kinds for _ in range(kind.count))

    @cached_property
    def work(self) -> np.ndarray:
        """Seconds of each class on each replica, float64[classes, replicas]."""
        return np.array([[kind.work(one) for kind in self.replicas] for one in self.classes])

    @cached_property
    def shares(self) -> np.ndarray:
        """Of the classes, float64[classes]."""
        return np.array([one.share for one in self.classes])

    @cached_property
    def plan(self) -> tuple[float, np.ndarray]:
        """The most requests/s that anybody carries, and the share of each class that goes to each replica then."""
        from scipy.optimize import linprog

        classes, replicas = self.work.shape
        # Variables: rate of each class at each replica, then the rate of all.
        busy = np.zeros((replicas, classes * replicas + 1))
        sent = np.zeros((classes, classes * replicas + 1))
        for c in range(classes):
            for j in range(replicas):
                busy[j, c * replicas + j] = self.work[c, j]
                sent[c, c * replicas + j] = 1.0
        sent[:, -1] = -self.shares
        cost = np.zeros(classes * replicas + 1)
        cost[-1] = -1.0
        found = linprog(cost, A_ub=busy, b_ub=np.ones(replicas), A_eq=sent, b_eq=np.zeros(classes))
        rates = np.asarray(found.x)
        return float(rates[-1]), rates[:-1].reshape(classes, replicas) / (rates[-1] * self.shares[:, None])

    @property
    def blind(self) -> np.ndarray:
        """The share of every class that goes to each replica, where that is the same for all classes, at best."""
        speed = 1.0 / (self.shares @ self.work)
        return np.asarray(speed / speed.sum())

    @property
    def capacity(self) -> float:
        """The most requests/s that anybody carries."""
        return self.plan[0]

    def mean(self, name: str) -> float:
        """Mean of a length over the classes, tokens."""
        return math.fsum(one.share * getattr(one, name) for one in self.classes)

    def requests(self, rate: float, count: int, seed: int) -> Requests:
        """Poisson arrivals of the classes in their shares."""
        rng = np.random.default_rng(seed)
        which = rng.choice(len(self.classes), size=count, p=self.shares)
        prompt, output = (
            np.array([getattr(one, name) for one in self.classes])[which] for name in ("prompt", "output")
        )
        arrival = np.cumsum(rng.exponential(1.0 / rate, count))
        return Requests.create(arrival, prompt, rng.integers(1, 2 * output), tiers=_TIERS)


PROMPTS = RequestClass("summaries", 2048, 32, 0.25)
CHATS = RequestClass("chats", 128, 384, 0.75)
NARROW = Kind("narrow", 2, 0.0, 1.0, 128)
WIDE = Kind("wide", 2, 1.0, 0.35, 512)
WORLDS = {
    "identical": World("identical", (Kind("narrow", 4, 0.0, 1.0, 128),), (PROMPTS, CHATS)),
    "speeds": World(
        "speeds",
        (NARROW, Kind("half as fast", 1, 0.0, 2.0, 128), Kind("a quarter as fast", 1, 0.0, 4.0, 128)),
        (PROMPTS, CHATS),
    ),
    "kinds": World("kinds", (NARROW, WIDE), (PROMPTS, CHATS)),
}
"""Four equal replicas; four of speeds 1, 1, 1/2, 1/4; two kinds that suit different classes: the wide one has a fixed
cost for each iteration, and takes prompts in chunks of 512 at little more than that."""


@dataclass(frozen=True)
class Planned(Router):
    """Each class in the shares of the linear programme, drawn; a class is known by its prompt length.

    Blind to classes it draws by the shares that are best for all of them: in proportion to one over the mean work.
    """

    name: ClassVar[str] = "planned"
    world: str = "kinds"
    blind: bool = False

    def encode(self, name: str, value: object) -> float:
        """Both are in the memory, as shares."""
        return 0.0

    def memory(self, replicas: int) -> RouterMemory:
        """The shares: a line for each replica; the prompt length of each class."""
        world = WORLDS[self.world]
        prompts = np.array([one.prompt for one in world.classes], np.float64)
        shares = np.tile(world.blind, (len(prompts), 1)) if self.blind else world.plan[1]
        return RouterMemory(np.zeros(1), np.ascontiguousarray(shares.T), prompts)


@router_kernel_of(Planned)
def _route(view: RouterView, memory: RouterMemory) -> int:
    c = 0
    while c < memory.row.shape[0] - 1 and memory.row[c] != view.request[0].prompt:
        c += 1
    left = drawn(view, 0)
    for j in range(view.replica.shape[0] - 1):
        left -= memory.replica[j, c]
        if left < 0.0:
            return j
    return view.replica.shape[0] - 1


@dataclass(frozen=True)
class Carried:
    """What one router carries in one world."""

    world: str
    router: str
    theory: float | None
    """Share of the linear programme's capacity that theory says; None: nobody knows."""
    simulated: float
    """The same by simulation."""
    unfinished: float
    """`unfinished` where 0.97 of that capacity comes."""


@dataclass(frozen=True)
class Region:
    """What came of it; `to_dict` is what the JSON holds."""

    requests: int
    seeds: int
    capacity: dict[str, float]
    """Requests per unit of time that the linear programme allows, by world."""
    work: dict[str, list[list[float]]]
    """Units of time of each class on each replica, by world."""
    versions: dict[str, str]
    carried: tuple[Carried, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return as_file(self, FORMAT)


class Contestant(NamedTuple):
    """A router, and what theory says of it."""

    label: str
    router: Router
    theory: float | None
    """Share of the capacity that it carries; None: nobody knows."""


def contestants(world: World) -> list[Contestant]:
    """The routers that are compared."""
    mean_work = world.shares @ world.work
    uniform = len(mean_work) / float(mean_work.max()) / world.capacity
    blind = float((1.0 / mean_work).sum()) / world.capacity
    expects = f"mean_output={world.mean('output'):.0f}"
    return [
        Contestant("random", routers.make("random"), uniform),
        Contestant("best split without classes", Planned(world.name, blind=True), blind),
        Contestant("jsq", routers.make("jsq"), None),
        Contestant("least_finish_time", routers.make(f"least_finish_time:{expects}"), None),
        Contestant("split of the programme", Planned(world.name), 1.0),
        Contestant("max_weight", routers.make(f"max_weight:{expects}"), 1.0),
    ]


def unfinished(world: World, router: Router, load: float, count: int, seeds: int) -> float:
    """Share of its requests that the replica farthest behind has not finished at the last arrival, mean over the seeds.

    Args:
        world: replicas and classes.
        router: in front of them.
        load: share of the capacity that comes.
        count: requests of a run.
        seeds: seeds 0 ... seeds - 1.
    """
    policies = [baselines.make(kind.policy) for kind in world.replicas]
    models, servers = [kind.model for kind in world.replicas], [SERVER] * len(policies)
    found = []
    for seed in range(seeds):
        requests = world.requests(load * world.capacity, count, seed)
        end = float(requests.arrival[-1])
        record = simulate_cluster(router, policies, requests, models, servers, seed=seed, horizon_s=end)
        found.append(max(float((one.ledger["completed"] < 0.0).mean()) for one in record.records if len(one.requests)))
    return float(np.mean(found))


def study(names: Sequence[str], count: int, seeds: int, progress: OnProgress = unseen) -> Region:
    """What each router carries in some worlds.

    Args:
        names: of WORLDS.
        count: requests of a run.
        seeds: seeds 0 ... seeds - 1.
        progress: called after each router.

    Raises:
        InputError: an unknown world.
    """
    for name in names:
        if name not in WORLDS:
            raise InputError(f"worlds: expected some of {', '.join(WORLDS)}, got {name!r}")
    worlds = [WORLDS[name] for name in names]
    return Region(
        requests=count,
        seeds=seeds,
        capacity={world.name: world.capacity for world in worlds},
        work={world.name: world.work.tolist() for world in worlds},
        versions=versions(),
        carried=tuple(_carried(worlds, count, seeds, progress)),
    )


def _carried(worlds: Sequence[World], count: int, seeds: int, progress: OnProgress) -> Iterator[Carried]:
    tasks = [(world, *contestant) for world in worlds for contestant in contestants(world)]
    for done, (world, label, router, theory) in enumerate(tasks):
        progress("routers", done, len(tasks))
        late = partial(unfinished, world, router, count=count, seeds=seeds)
        share = bisect(lambda load, late=late: late(load) <= UNFINISHED, 0.2, 1.1, 0.005)  # type: ignore[misc]
        yield Carried(world.name, label, theory, share, late(0.97))
