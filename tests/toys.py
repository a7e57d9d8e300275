"""Toys that several tests share: a device of constant speed, requests all at once, policies around a function."""

from collections.abc import Callable
from typing import ClassVar, Self

import baselines
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from engine.server.policy import Kernel, Policy
from engine.server.state import Memory, Plan, View

Planner = Callable[[View, Memory, Plan], None]


def constant(seconds: float) -> LatencyModel:
    """A device on which every iteration takes the same time (s)."""
    return LatencyModel(overhead=seconds, floor=0.0, per_token=0.0, per_pair=0.0, per_context=0.0)


def burst(prompts: list[int], outputs: list[int], tiers: list[int] | None = None) -> Requests:
    """Requests that are all there at time 0."""
    return Requests.create([0.0] * len(prompts), prompts, outputs, tiers)


def planned(plan: Plan) -> list[tuple[int, int]]:
    """What a plan says: (request, tokens) of each entry."""
    return [(int(e["request"]), int(e["tokens"])) for e in plan.entry[: plan.size[0]]]


def steps_of(
    policy: Policy, requests: Requests, config: EngineConfig | None = None, device: LatencyModel | None = None
) -> StepLog:
    """The step log of a run that serves everybody, one second for each iteration unless a device says otherwise."""
    record = simulate(policy, requests, device or constant(1.0), config, log_steps=True)
    assert int(record.row["finished"][0]) == len(requests)
    assert record.steps is not None
    return record.steps


def tokens_of(log: StepLog) -> list[dict[int, int]]:
    """Tokens by request, in order, for each iteration."""
    return [{int(i): int(n) for i, n, _ in batch} for batch in log.batches]


def look_away(view: View, memory: Memory, plan: Plan) -> None:
    """Look at nothing."""


class Observed(Policy):
    """Another policy, driven from Python, with somebody who looks over its shoulder."""

    name: ClassVar[str] = "observed"

    def __init__(self, inner: Policy | str, *, before: Planner = look_away, after: Planner = look_away) -> None:
        """Wrap a policy (or the baseline of this spec); one may look before and after each of its decisions."""
        self.inner = baselines.make(inner) if isinstance(inner, str) else inner
        self.before, self.after = before, after

    def on(self, model: LatencyModel) -> Self:
        """Tell the wrapped policy."""
        self.inner = self.inner.on(model)
        return self

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        """What the wrapped policy remembers."""
        return self.inner.memory(config, num_requests)

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        """Look, let the wrapped policy plan, look again."""
        self.before(view, memory, plan)
        self.inner.plan(view, memory, plan)
        self.after(view, memory, plan)


class Improvised(Policy):
    """A plain-Python policy around one function."""

    name: ClassVar[str] = "improvised"

    def __init__(self, planner: Planner) -> None:
        """Plan with this function."""
        self.planner = planner

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        """Whatever the function does."""
        self.planner(view, memory, plan)


def compiled(name: str, kernel: Kernel) -> Policy:
    """A policy without parameters whose plan is this kernel."""
    policy: Policy = type(name, (Policy,), {"name": name, "kernel": kernel})()
    return policy
