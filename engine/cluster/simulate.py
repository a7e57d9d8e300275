"""`simulate_cluster`: one router, a policy for each replica, one trace -> `ClusterRecord`."""

from collections.abc import Sequence

import numpy as np

from engine.cluster.fleet import Replicas, each_server, kernels_of, new_arrivals, new_fleet, shown
from engine.cluster.loop import ASKS, NOWHERE, compiled_run
from engine.cluster.record import ClusterRecord
from engine.cluster.router import Router, RouterKernel
from engine.cluster.state import Arrivals, Fleet, RouterMemory, RouterView
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import Executor
from engine.errors import InputError, expect
from engine.own_code import blame
from engine.ranges import SEED
from engine.runs.driving import PolicyError, are_cells, fault
from engine.runs.pieces import FIRST_PIECE, PAUSED
from engine.runs.record import Record
from engine.runs.simulate import most_decisions, what_ended
from engine.runs.steps import LIMIT, OVER
from engine.server.core import close
from engine.server.policy import Policy
from engine.server.rows import row_of
from engine.server.state import Server

World = tuple[Fleet, Arrivals, RouterView]
"""What the loop works on."""


class RouterError(PolicyError):
    """A router chose a replica that there is not, or its code raised an exception."""


def simulate_cluster(
    router: Router,
    policies: Sequence[Policy],
    requests: Requests,
    executors: Sequence[Executor],
    configs: Sequence[EngineConfig] | None = None,
    *,
    seed: int = 0,
    horizon_s: float = float("inf"),
) -> ClusterRecord:
    """Serve a whole trace with several replicas behind a router.

    Args:
        router: decides at each arrival which replica gets the request.
        policies: one for each replica, with compiled kernels.
        requests: the trace, of an open loop.
        executors: the latency model of each replica's device.
        configs: limits and semantics of each (None: the default ones, with the KV memory that its profile says).
        seed: of the numbers that the router draws; with it the same call gives the same record bit for bit.
        horizon_s: a replica stops at its first iteration that starts at or after this time.

    Returns:
        The record of the run. Each replica's is what `simulate` makes of the requests that it got, bit for bit.

    Raises:
        InputError: an argument of another kind, no replica, lists of different lengths, a request that a replica can
            never serve, or requests without predictions for a policy that needs some.
        PolicyError: a policy made an illegal plan, stalled, or decided far more often than there are tokens.
        RouterError: the router chose no replica that there is, or its code raised an exception.
    """
    expect(isinstance(router, Router), "router", "a router such as routers.make('jsq')", router)
    replicas = Replicas.of(policies, executors, configs)
    requests = replicas.servable(requests, horizon_s)
    fleet, trace = new_fleet(replicas, requests, router.report_s, horizon_s), new_arrivals(replicas, requests)
    view, limit = shown(replicas, SEED.check(seed, "seed")), most_decisions(requests)
    code = _run(router, replicas, (fleet, trace, view), limit)
    if code != OVER:
        raise _fault(code, router, replicas, (fleet, trace, view), limit)
    return record_of(router.spec, replicas, requests, fleet, trace)


@RouterKernel
def _nobody(view: RouterView, memory: RouterMemory) -> int:
    """Stands in the loop for a router in Python, which is asked outside of it."""
    return -1


def _run(router: Router, replicas: Replicas, world: World, limit: int) -> int:
    """Serve the trace piece by piece, so that Ctrl-C and signals are heard; returns a code of the loop."""
    fleet, _, view = world
    course, memory = fleet.course[0], _memory_of(router, len(replicas))
    kernels = tuple(kernel.compiled for kernel in kernels_of(replicas))
    route, asks = (router.kernel or _nobody, False) if router.runs_compiled else (_nobody, True)
    loop = compiled_run(len(kernels))
    while True:
        course.stop = min(int(course.decisions) + FIRST_PIECE, limit)
        try:
            code = int(loop(route.compiled, kernels, *world, memory, asks))
        except Exception as error:  # of a kernel: nothing else in the loop can raise
            raise _blamed(router, replicas, int(course.replica), error) from error
        if code == ASKS:
            course.choice = _asked(router, view, memory)
        elif code != PAUSED:
            return code
        elif course.decisions >= limit:
            return LIMIT


def _asked(router: Router, view: RouterView, memory: RouterMemory) -> int:
    """What a router in Python chooses.

    Raises:
        RouterError: its code raised an exception, or it chose no replica.
    """
    try:
        choice = router.route(view, memory)
    except (PolicyError, InputError):
        raise
    except (Exception, SystemExit) as error:
        raise RouterError(f"router {router.spec!r}: {blame(error)}") from error
    if isinstance(choice, bool) or not isinstance(choice, int | np.integer) or not 0 <= choice < len(view.replica):
        raise RouterError(_nowhere(router, choice, len(view.replica), float(view.row[0].now)))
    return int(choice)


def _nowhere(router: Router, choice: object, replicas: int, now: float) -> str:
    return f"router {router.spec!r}: expected a replica 0 ... {replicas - 1} at t={now:.3f} s, got {choice!r}"


def _blamed(router: Router, replicas: Replicas, j: int, error: BaseException) -> PolicyError:
    """Whose kernel raised an exception."""
    if j < 0:
        return RouterError(f"router {router.spec!r}: {blame(error)}")
    return PolicyError(f"replica {j}: {fault(replicas.policies[j], error)}")


def _fault(code: int, router: Router, replicas: Replicas, world: World, limit: int) -> PolicyError:
    """What ended a run before its end."""
    fleet, _, view = world
    course = fleet.course[0]
    if code == NOWHERE:
        return RouterError(_nowhere(router, int(course.choice), len(replicas), float(view.row[0].now)))
    j = int(course.replica)
    return PolicyError(f"replica {j}: {what_ended(code, replicas.policies[j], row_of(fleet.servers, j), limit)}")


def _memory_of(router: Router, replicas: int) -> RouterMemory:
    """The memory of a router, checked before compiled code indexes into it.

    Raises:
        InputError: arrays of another type or size.
    """
    memory = router.memory(replicas)
    arrays = memory if isinstance(memory, RouterMemory) else (None,) * 3
    shapes = (None,), (replicas, None), (None,)
    if router.runs_compiled and not all(are_cells(array, shape) for array, shape in zip(arrays, shapes, strict=True)):
        raise InputError(
            f"router {router.name!r}: memory: expected RouterMemory(params, replica, row) of contiguous float64 arrays "
            f"with shapes (any,), ({replicas}, any), (any,)"
        )
    return memory


def record_of(router: str, replicas: Replicas, requests: Requests, fleet: Fleet, trace: Arrivals) -> ClusterRecord:
    """What came of a run, replica by replica; completes the ledgers, once.

    Args:
        router: its spec.
        replicas: that served.
        requests: all that were sent.
        fleet: as the loop left it.
        trace: with the replica of each request.
    """
    records = []
    for j, server in enumerate(each_server(fleet)):
        close(server)
        index = np.flatnonzero(trace.replica == j)
        records.append(_one(replicas.policies[j], replicas.configs[j], requests.take(index), server))
    return ClusterRecord(router, requests, trace.replica, tuple(records))


def _one(policy: Policy, config: EngineConfig, requests: Requests, server: Server) -> Record:
    view, hidden, n = server.visible, server.hidden, len(requests)
    if requests.forecast.every:
        hidden.ledger["refresh"][:n] = requests.forecast.first[:-1]  # before, places among those of the whole trace
    return Record(
        policy=policy.spec,
        requests=requests,
        config=config,
        request=view.request[:n].copy(),
        ledger=hidden.ledger[:n].copy(),
        tier=hidden.tier.copy(),
        gaps=hidden.gaps.copy(),
        row=view.row.copy(),
    )
