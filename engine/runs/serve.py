"""From a policy to its numbers: draw the requests, predict their lengths, simulate, summarise.

The one way in which evaluations, searches, studies and commands serve a trace. What they differ in is where the
requests come from (`RequestSource`) and which server they are sent to (`Deployment`).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import Executor
from engine.device.memory import default_server
from engine.runs.goodput import Goodput
from engine.runs.metrics import summarize
from engine.runs.pieces import OnProgress, Watched
from engine.runs.record import Record
from engine.runs.report import Report
from engine.runs.simulate import simulate
from engine.server.policy import Policy


class RequestSource(ABC):
    """Where the requests of runs come from."""

    @abstractmethod
    def requests(self, rate: float | None, seed: int) -> Requests:
        """The trace of one load and seed, the same for the same arguments.

        Args:
            rate: arrival rate in requests/s; None leaves the times as they are.
            seed: draws everything random.
        """

    def channel(self, policy: Policy) -> str:
        """The channel of a policy's predictions of output lengths, "" if it needs none."""
        return policy.channel

    def told(self, policy: Policy, rate: float | None, seed: int) -> Requests:
        """The requests of one load and seed, with predictions if the policy needs any."""
        return self.predicted(policy, self.requests(rate, seed), seed)

    def predicted(self, policy: Policy, requests: Requests, seed: int) -> Requests:
        """Requests that were drawn from this seed, with predictions if the policy needs any."""
        channel = self.channel(policy)
        return predict(requests, channel, seed) if channel else requests


@dataclass(frozen=True)
class Synthetic(RequestSource):
    """Requests that a workload draws; each policy has the predictions that it asks for."""

    workload: Workload
    """What to draw."""

    def requests(self, rate: float | None, seed: int) -> Requests:
        """The workload's requests, at its own rate for None."""
        workload = self.workload if rate is None else replace(self.workload, rate=rate)
        return workload.generate(seed)


class Run(NamedTuple):
    """What came of serving a trace."""

    record: Record
    report: Report


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The server that requests are sent to, and which part of its runs counts."""

    executor: Executor
    """Seconds of an iteration: a latency model, or a device."""
    config: EngineConfig = None  # type: ignore[assignment]  # the executor's before anybody sees it
    """Limits and semantics (default: with the KV memory that a model's profile says)."""
    fallback: Policy | None = None
    """Decides where the policy fails (`simulate`)."""
    horizon_s: float = math.inf
    """The clock stops at this time."""
    warmup_s: float = 0.0
    """Requests that arrive before this time are not counted."""
    goodput: Goodput | None = None
    """Limits of vLLM's `request_goodput`."""

    def __post_init__(self) -> None:
        """Find the server where nobody said one."""
        if self.config is None:
            object.__setattr__(self, "config", default_server(self.executor))

    def run(self, policy: Policy, requests: Requests, on_progress: OnProgress | None = None) -> Run:
        """Serve a trace and summarise it.

        Args:
            policy: decides every batch.
            requests: the trace, with predictions if the policy needs any.
            on_progress: told about once a second how many requests have left, of how many.

        Raises:
            InputError: the requests do not fit the server, or nothing is left to count behind the warm-up.
            PolicyError: the policy broke the rules.
        """
        record = simulate(
            policy,
            requests,
            Watched(self.executor, on_progress) if on_progress else self.executor,
            self.config,
            horizon_s=self.horizon_s,
            fallback=self.fallback,
        )
        return Run(record, summarize(record, warmup_s=self.warmup_s, goodput=self.goodput))


def serve(policy: Policy, source: RequestSource, rate: float | None, seed: int, deployment: Deployment) -> Run:
    """Draw the requests of one load and seed, predict what the policy needs, serve and summarise them.

    Args:
        policy: decides every batch.
        source: where the requests come from.
        rate: arrival rate in requests/s; None: as they come.
        seed: draws everything random.
        deployment: the server.

    Raises:
        InputError: the requests do not fit the server.
        PolicyError: the policy broke the rules.
    """
    return deployment.run(policy, source.told(policy, rate, seed))
