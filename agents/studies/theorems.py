"""The two theorems of arXiv 2508.01002 on equal replicas, by simulation.

Theorem 1: where more work comes than the replicas can do at the best tiling, requests pile up without end, whatever
routes and whatever schedules. Theorem 2: where less comes, RAD behind a router that draws uniformly keeps up. Prompts
are whole tiles, as the paper assumes, so that the work of a request is its tokens in tiles; arrival times are scaled so
that the work that comes until the last arrival is the load times what the replicas can do until then. Of load r > 1 the
share 1 - 1 / r of the work is not done by then, however long it goes on.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import baselines
from agents.studies.worlds import IDENTICAL, SERVER, TILE, WORLDS
from agents.work.progress import OnProgress, unseen
from baselines import routers
from engine.cluster.simulate import simulate_cluster
from engine.demand.requests import Requests

LOADS = (0.97, 1.03, 1.10)
"""Work that comes, over what the replicas can do."""
RAD = WORLDS[IDENTICAL].kinds[0].policy
SCHEDULERS = {
    "RAD": RAD,
    "RAD, cycles of 64": f"{RAD},drain=cycle,prefills=64",
    "Sarathi": f"sarathi:token_budget={TILE}",
}
"""By name; the first theorem is about any, the second about the first one."""
PAIRS = (
    *((router, "RAD") for router in ("random", "round_robin", "power_of_d", "jsq")),
    *(("jsq", scheduler) for scheduler in SCHEDULERS if scheduler != "RAD"),
)
"""Routers, and what schedules on the replicas."""


@dataclass(frozen=True)
class Loaded:
    """Equal replicas at one load."""

    load: float
    """Work that comes, over what the replicas can do."""
    router: str
    scheduler: str
    unfinished_half_way: int
    """Requests that had come and were not finished when half of them had come ..."""
    unfinished: int
    """... and when the last one came."""
    share: float
    """Of all that came, at the last arrival."""
    undone: float
    """Share of the work that nobody can have done by then, 1 - 1 / load."""
    mean_response: float
    """From arrival to the last token, of all requests; units of what a tile takes."""


def prove(count: int, progress: OnProgress = unseen) -> tuple[Loaded, ...]:
    """Serve a little less and a little more than what the replicas can do.

    Args:
        count: requests of a run.
        progress: called before each run.
    """
    return tuple(_runs(count, progress))


def _runs(count: int, progress: OnProgress) -> Iterator[Loaded]:
    tasks = [(load, *pair) for load in LOADS for pair in PAIRS]
    for done, (load, router, scheduler) in enumerate(tasks):
        progress("theorems", done, len(tasks))
        yield run(load, router, scheduler, count)


def run(load: float, router: str, scheduler: str, count: int, seed: int = 0) -> Loaded:
    """Serve one load to its end.

    Args:
        load: work that comes, over what the replicas can do.
        router: spec of a router.
        scheduler: one of SCHEDULERS.
        count: requests.
        seed: of the requests, and of what the router draws.
    """
    world = WORLDS[IDENTICAL]
    policies = [baselines.make(SCHEDULERS[scheduler]) for _ in world.replicas]
    models, servers = [kind.model for kind in world.replicas], [SERVER] * len(policies)
    requests = _scaled(world.requests(world.capacity, count, seed), load * len(policies))
    record = simulate_cluster(routers.make(router), policies, requests, models, servers, seed=seed).fleet()
    arrival, completed = requests.arrival, record.ledger["completed"]
    half_way, last = (int(((arrival <= t) & (completed > t)).sum()) for t in (arrival[count // 2], arrival[-1]))
    return Loaded(
        load=load,
        router=router,
        scheduler=scheduler,
        unfinished_half_way=half_way,
        unfinished=last,
        share=last / count,
        undone=max(0.0, 1.0 - 1.0 / load),
        mean_response=float(np.mean(completed - arrival)),
    )


def _scaled(requests: Requests, busy: float) -> Requests:
    """The requests faster or slower, so that their work keeps so many replicas busy until the last one comes."""
    tiles = float((requests.prompt + requests.output - 1.0).sum()) / TILE
    return requests.replace(arrival=requests.arrival * (tiles / busy / float(requests.arrival[-1])))
