"""Many clusters side by side: the arrays of a `Cluster` one behind the other, E clusters of J replicas each.

Each cluster is a copy of the same fresh one, in front of a trace of its own. The compiled loop takes one of them out
as views (`cluster_of`) and knows nothing of the others.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from engine.cluster.fleet import Replicas, new_arrivals, new_fleet, shown
from engine.cluster.state import Arrivals, Fleet, Memories, RouterView
from engine.compiled.jit import inner
from engine.demand.requests import Requests
from engine.runs.simulate import most_decisions
from engine.server.state import Hidden, Plan, Server, View

NEVER = 1 << 62
"""A number of plans that no cluster reaches: the loop looks at no clock."""


class Cluster(NamedTuple):
    """What the loop works on; of many, the arrays of the replicas are E times as long, and those of a trace stacked."""

    fleet: Fleet
    trace: Arrivals
    seen: RouterView  # what its router sees


def new_cluster(replicas: Replicas, requests: Requests, age: float) -> Cluster:
    """A cluster at time 0 in front of a trace, its reports `age` seconds apart."""
    fleet = new_fleet(replicas, requests, age, float("inf"))
    return Cluster(fleet, new_arrivals(replicas, requests), shown(replicas, 0))


def new_clusters(fresh: Cluster, count: int) -> Cluster:
    """Memory for so many clusters like this one; `Fresh.put` starts one."""

    def copies(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array] * count).view(type(array))

    def stacked(array: np.ndarray) -> np.ndarray:
        return np.stack([array] * count).view(type(array))

    fleet, trace, servers, memories = fresh.fleet, fresh.trace, fresh.fleet.servers, fresh.fleet.memories
    return Cluster(
        Fleet(
            Server(
                View(*map(copies, servers.visible)),
                Hidden(*map(copies, servers.hidden)),
                Plan(*map(copies, servers.plan)),
                copies(servers.features),
            ),
            Memories(memories.params, copies(memories.request), copies(memories.row)),
            copies(fleet.coefficient),
            fleet.table,
            *map(copies, (fleet.clock, fleet.load, fleet.course)),
        ),
        Arrivals(stacked(trace.request), stacked(trace.ledger), copies(trace.output), stacked(trace.replica)),
        RouterView(*map(copies, fresh.seen)),
    )


@inner
def cluster_of(clusters: Cluster, e: int) -> Cluster:
    """Cluster `e` of many; its arrays are views, so changes reach the stack."""
    f, t, w = clusters.fleet, clusters.trace, clusters.seen
    replicas = f.clock.shape[0] // f.course.shape[0]
    a, b = e * replicas, (e + 1) * replicas
    v, h, p = f.servers.visible, f.servers.hidden, f.servers.plan
    servers = Server(
        View(v.request[a:b], v.queue[a:b], v.running[a:b], v.row[a:b]),
        Hidden(h.ledger[a:b], h.output[a:b], h.tier[a:b], h.gaps[a:b], h.refresh[a:b], h.release[a:b]),
        Plan(p.entry[a:b], p.size[a:b], p.wake[a:b], p.draft[a:b], p.victim[a:b], p.named[a:b]),
        f.servers.features[a:b],
    )
    fleet = Fleet(servers, f.memories, f.coefficient[a:b], f.table, f.clock[a:b], f.load[a:b], f.course[e : e + 1])
    trace = Arrivals(t.request[e], t.ledger[e], t.output[a:b], t.replica[e])
    return Cluster(fleet, trace, RouterView(w.request[e : e + 1], w.replica[a:b], w.row[e : e + 1]))


class Fresh:
    """Puts clusters of a stack back to time 0, byte by byte as the fresh one is."""

    def __init__(self, fresh: Cluster, clusters: Cluster) -> None:
        self._clusters = clusters
        count = len(clusters.fleet.course)
        self._pairs = [
            (_bytes(many, count), _bytes(one, 1)[0])
            for one, many in zip(_reset(fresh), _reset(clusters), strict=True)
            if one.size
        ]
        # Where the memories of a replica's policy begin is counted from the first cluster's.
        places = np.arange(count).repeat(len(fresh.fleet.clock))
        self._clock = clusters.fleet.clock.copy()
        self._clock["lines"] += places * len(fresh.fleet.memories.request)
        self._clock["row"] += places * len(fresh.fleet.memories.row)

    def put(self, e: int, replicas: Replicas, requests: Requests, age: float, seed: int) -> None:
        """Put cluster `e` in front of a trace.

        Args:
            e: which one.
            replicas: those of all clusters.
            requests: as many as there is room for.
            age: s from one report of its replicas to the next.
            seed: of the numbers that a router draws.
        """
        for many, one in self._pairs:
            many[e] = one
        cluster = cluster_of(self._clusters, e)
        fleet, places = cluster.fleet, len(cluster.fleet.clock)
        fleet.clock[:] = self._clock[e * places : (e + 1) * places]
        fleet.course["age"], fleet.course["stop"], fleet.course["before"] = age, most_decisions(requests), NEVER
        cluster.seen.row["seed"] = seed
        for there, here in zip(cluster.trace, new_arrivals(replicas, requests), strict=True):
            there[...] = here


def _reset(cluster: Cluster) -> Iterator[np.ndarray]:
    """The arrays that an episode changes, but for the trace and the clock."""
    fleet = cluster.fleet
    servers = fleet.servers
    yield from (*servers.visible, *servers.hidden, *servers.plan, servers.features)
    yield from (fleet.memories.request, fleet.memories.row, fleet.load, fleet.course, *cluster.seen)


def _bytes(array: np.ndarray, count: int) -> np.ndarray:
    """An array as uint8[count, n]."""
    return np.frombuffer(array, np.uint8).reshape(count, -1)
