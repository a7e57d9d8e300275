"""What servers that differ carry behind a router: the linear programme over classes and replicas, and by simulation.

A router that does not look at the class carries less than the programme allows where kinds suit different classes, and
one that does not look at the replicas less where they differ in speed (`agents.studies.worlds`). Where replicas are
equal, the paper's two theorems say what anybody carries (`agents.studies.theorems`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

import baselines
from agents.evaluation.points import bisect
from agents.studies.theorems import Loaded, prove
from agents.studies.worlds import IDENTICAL, SERVER, WORLDS, World
from agents.work.progress import OnProgress, unseen
from agents.work.provenance import versions
from agents.work.records import as_file
from baselines import routers
from engine.cluster.router import Router, drawn, router_kernel_of
from engine.cluster.simulate import simulate_cluster
from engine.cluster.state import RouterMemory, RouterView
from engine.errors import InputError

FORMAT = "llmsched-region/1"
UNFINISHED = 0.0125
"""A load is carried where at every replica at most this share of its requests is unfinished when the last one comes."""
LOWEST, HIGHEST, STEP = 0.2, 1.1, 0.005
"""Loads between which that one is sought, and how close, as shares of the capacity."""


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
    """The same by simulation: the largest share that was found to be carried."""
    bound: Literal["exact", "below", "above"]
    """Whether it is that, or nothing that was tried is carried (`below`), or all of it (`above`)."""
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
    theorems: tuple[Loaded, ...]
    """Equal replicas a little below and above the bound; nothing where they are not among the worlds."""

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
        theorems=prove(count, progress) if IDENTICAL in names else (),
    )


def _carried(worlds: Sequence[World], count: int, seeds: int, progress: OnProgress) -> Iterator[Carried]:
    tasks = [(world, *contestant) for world in worlds for contestant in contestants(world)]
    for done, (world, label, router, theory) in enumerate(tasks):
        progress("routers", done, len(tasks))
        late = partial(unfinished, world, router, count=count, seeds=seeds)
        yield Carried(world.name, label, theory, *_largest(late), late(0.97))


def _largest(late: Callable[[float], float]) -> tuple[float, Literal["exact", "below", "above"]]:
    """The largest load that is carried, and whether it is that: the ends are tried where the search came to them."""

    def carries(load: float) -> bool:
        return late(load) <= UNFINISHED

    share = bisect(carries, LOWEST, HIGHEST, STEP)
    if share == LOWEST and not carries(LOWEST):
        return share, "below"
    return (HIGHEST, "above") if share > HIGHEST - 2.0 * STEP and carries(HIGHEST) else (share, "exact")
