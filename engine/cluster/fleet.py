"""The replicas of a run: what they are, checked, and the arrays that the loop works on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from engine.cluster.prices import prices_of
from engine.cluster.state import CLOCK, COURSE, LOAD, Arrivals, Fleet, Memories, RouterView, blank, new_view
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel
from engine.device.memory import default_server
from engine.errors import InputError, expect
from engine.runs.driving import memory_of
from engine.runs.simulate import servable
from engine.server.policy import Kernel, Policy
from engine.server.rows import new_rows, row_of
from engine.server.state import Server, load, new_server, set_limits


@dataclass(frozen=True)
class Replicas:
    """What serves, replica by replica."""

    policies: tuple[Policy, ...]
    models: tuple[LatencyModel, ...]
    configs: tuple[EngineConfig, ...]

    @classmethod
    def of(
        cls, policies: Sequence[Policy], executors: Sequence[object], configs: Sequence[EngineConfig] | None
    ) -> "Replicas":
        """The replicas in these lists, each policy told its device.

        Raises:
            InputError: none, lists of different lengths, or something of another kind in them.
        """
        servers = list(map(default_server, executors)) if configs is None else configs
        lengths = {"policies": len(policies), "executors": len(executors), "configs": len(servers)}
        if len(set(lengths.values())) > 1:
            got = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise InputError(f"replicas: expected as many policies as executors and configs, got {got}")
        if not policies:
            raise InputError("replicas: expected at least one, got none")
        for j, (policy, model, config) in enumerate(zip(policies, executors, servers, strict=True)):
            _check_kinds(j, policy, model, config)
        models = tuple(model for model in executors if isinstance(model, LatencyModel))
        told = tuple(policy.on(model) for policy, model in zip(policies, models, strict=True))
        return cls(told, models, tuple(servers))

    def __len__(self) -> int:
        """How many."""
        return len(self.policies)

    def servable(self, requests: Requests, horizon_s: float) -> Requests:
        """Check that every replica can serve every request; returns them in arrays that nobody writes to.

        Raises:
            InputError: requests of a closed loop, one that a replica can never serve, requests without predictions
                for a policy that needs some, or a horizon that is no time.
        """
        expect(isinstance(requests, Requests), "requests", "Requests such as Workload(...).generate(seed=0)", requests)
        if requests.loop:
            raise InputError(f"requests: expected an open loop in front of a router, got a {requests.loop.description}")
        for j, (policy, config) in enumerate(zip(self.policies, self.configs, strict=True)):
            try:
                requests = servable(policy, requests, config, horizon_s)
            except InputError as error:
                raise InputError(f"replica {j}: {error}") from None
        return requests


def _check_kinds(j: int, policy: object, model: object, config: object) -> None:
    """Find a spec, a name or a class in the place of the object that it stands for, and what has no compiled form."""
    where = f"replica {j}: "
    expect(isinstance(policy, Policy), f"{where}policy", "a policy such as baselines.make('sarathi')", policy)
    expect(isinstance(model, LatencyModel), f"{where}executor", "a profile of load_profile(NAME)", model)
    expect(isinstance(config, EngineConfig), f"{where}config", "an EngineConfig", config)
    if isinstance(policy, Policy) and not policy.runs_compiled:
        raise InputError(f"{where}expected a policy with a compiled kernel, got {policy.spec!r}, which plans in Python")


def new_fleet(replicas: Replicas, requests: Requests, age: float, horizon_s: float) -> Fleet:
    """The replicas at time 0, with room for the whole trace at each of them."""
    latencies = [model.compiled(config) for model, config in zip(replicas.models, replicas.configs, strict=True)]
    course = blank(1, COURSE)
    course["age"], course["reported"], course["horizon"], course["choice"] = age, -1.0, horizon_s, -1
    clock = blank(len(replicas), CLOCK)
    clock["due"] = np.inf
    kernels = kernels_of(replicas)
    clock["kernel"] = [kernels.index(policy.kernel) for policy in replicas.policies if policy.kernel is not None]
    clock["num_table"] = [len(latency.table) for latency in latencies]
    clock["table"] = _begins(clock["num_table"])
    return Fleet(
        _servers(replicas, requests),
        _memories(replicas, len(requests), clock),
        np.concatenate([latency.coefficient for latency in latencies]).view(np.recarray),
        np.concatenate([latency.table for latency in latencies]),
        clock,
        blank(len(replicas), LOAD),
        course,
    )


def kernels_of(replicas: Replicas) -> list[Kernel]:
    """The different kernels of the policies."""
    return list(dict.fromkeys(policy.kernel for policy in replicas.policies if policy.kernel is not None))


def _begins(sizes: np.ndarray) -> np.ndarray:
    """Where parts of these sizes begin that stand one behind the other."""
    return np.cumsum(sizes) - sizes


def _servers(replicas: Replicas, requests: Requests) -> Server:
    """Empty servers with the limits of their configs."""
    servers = new_rows(len(replicas), len(requests), len(requests.tiers))
    forecast = requests.forecast
    refresh = np.tile(forecast.total, (len(replicas), 1))
    servers = servers._replace(hidden=servers.hidden._replace(refresh=refresh))
    for j, config in enumerate(replicas.configs):
        row = servers.visible.row[j]
        set_limits(row, config)
        row["refresh_every"], row["stale_half"] = forecast.every, forecast.stale_half
    return servers


def _memories(replicas: Replicas, num_requests: int, clock: np.ndarray) -> Memories:
    """What the policies remember, one behind the other, and in the clock where."""
    parts = [memory_of(p, c, num_requests) for p, c in zip(replicas.policies, replicas.configs, strict=True)]
    clock["num_params"] = [len(part.params) for part in parts]
    clock["num_row"] = [len(part.row) for part in parts]
    clock["width"] = [part.request.shape[1] for part in parts]
    clock["params"], clock["row"] = _begins(clock["num_params"]), _begins(clock["num_row"])
    clock["lines"] = _begins(num_requests * clock["width"])
    request = np.zeros(int(num_requests * clock["width"].sum()))  # memory is taken where it is written to
    for begin, part in zip(clock["lines"], parts, strict=True):
        if part.request.any():
            request[begin : begin + part.request.size] = part.request.ravel()
    return Memories(
        np.concatenate([part.params for part in parts]), request, np.concatenate([part.row for part in parts])
    )


def new_arrivals(replicas: Replicas, requests: Requests) -> Arrivals:
    """The trace as it will be sent."""
    server = new_server(len(requests), len(requests.tiers), len(requests.forecast.total))
    load(server, replicas.configs[0], requests)
    outputs = {config: config.served_output(requests.prompt, requests.output) for config in replicas.configs}
    output = np.array([outputs[config] for config in replicas.configs], np.int32)
    return Arrivals(server.visible.request, server.hidden.ledger, output, np.zeros(len(requests), np.int32))


def shown(replicas: Replicas, seed: int) -> RouterView:
    """A router's view with what does not change."""
    view = new_view(len(replicas))
    view.row["seed"] = seed
    view.replica["label"] = np.arange(len(replicas))
    for j, (model, config) in enumerate(zip(replicas.models, replicas.configs, strict=True)):
        replica = view.replica[j]
        replica["num_blocks"], replica["block_size"] = config.num_blocks, config.block_size
        replica["seats"] = config.max_num_seqs
        replica["prefill_s"], replica["decode_s"] = prices_of(model, config)
    return view


def each_server(fleet: Fleet) -> Iterator[Server]:
    """The servers of the replicas, one by one."""
    return (row_of(fleet.servers, j) for j in range(len(fleet.clock)))
