"""Worlds in which theory says what a fleet carries: classes of requests, kinds of replicas that cost their tiles.

A class of requests costs `work` seconds of a kind of replica, at the best tiling. Nobody carries more than the linear
programme over classes and replicas allows, which says which share of each class goes where. Every replica schedules by
RAD, which on these devices wastes nothing (arXiv 2508.01002).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.cluster.prices import seconds_of_batch
from engine.config import EngineConfig
from engine.demand.requests import Requests, Tier
from engine.device.latency import LatencyModel
from engine.server.features import EMPTY, Features, add

TILE = 64
"""Tokens of a GeMM tile, and decodes of a batch."""
SERVER = EngineConfig(num_blocks=400_000, max_num_seqs=4096, max_model_len=16_384)
"""So much memory that it never binds."""
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
        """What schedules on it: RAD as the paper has it, without an end of its cycle."""
        return f"rad:chunk={self.chunk},decode_batch={TILE},tile={TILE}"

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
IDENTICAL = "identical"
WORLDS = {
    IDENTICAL: World(IDENTICAL, (Kind("narrow", 4, 0.0, 1.0, 128),), (PROMPTS, CHATS)),
    "speeds": World(
        "speeds",
        (NARROW, Kind("half as fast", 1, 0.0, 2.0, 128), Kind("a quarter as fast", 1, 0.0, 4.0, 128)),
        (PROMPTS, CHATS),
    ),
    "kinds": World("kinds", (NARROW, WIDE), (PROMPTS, CHATS)),
}
"""Four equal replicas; four of speeds 1, 1, 1/2, 1/4; two kinds that suit different classes: the wide one has a fixed
cost for each iteration, and takes prompts in chunks of 512 at little more than that."""
