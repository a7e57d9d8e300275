"""The time of a decision is that of the decision which the simulation makes."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import baselines
from agents.evaluation.window import decision_seconds
from agents.policies import resolve
from engine.config import EngineConfig
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.simulate import simulate
from engine.server.policy import Policy
from engine.server.state import Memory, Plan, View

Batch = list[tuple[int, int]]


def planned(plan: Plan) -> Batch:
    return [(int(e["request"]), int(e["tokens"])) for e in plan.entry[: plan.size[0]]]


@dataclass(frozen=True)
class Watched(Policy):
    """Notes every plan of the inner policy, and what was planned where its time was taken before that."""

    inner: Policy = field(default_factory=lambda: baselines.make("slai"))
    name = "watched"
    made: list[Batch] = field(default_factory=list)
    timed: list[Batch] = field(default_factory=list)

    def memory(self, config: EngineConfig, num_requests: int) -> Memory:
        return self.inner.memory(config, num_requests)

    def plan(self, view: View, memory: Memory, plan: Plan) -> None:
        before = [column.copy() for column in memory]
        assert decision_seconds(self.inner, view, memory, plan) >= 0.0
        assert all(np.array_equal(a, b) for a, b in zip(before, memory, strict=True))
        self.timed.append(planned(plan))
        plan.size[0], plan.wake[0] = 0, np.inf
        self.inner.plan(view, memory, plan)
        self.made.append(planned(plan))


@pytest.mark.parametrize("spec", ["slai", "sarathi", "slackfit:tuned", "pretrained", "mlfq", "alise", "wait"])
def test_the_decision_that_is_timed_is_the_one_that_is_made(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded so heavily that many decodes have marks and prompts wait; plans differ from one decision to the next."""
    monkeypatch.setattr("agents.evaluation.window.REPEATS", 3)
    monkeypatch.setattr("agents.evaluation.window.BLOCKS", 1)
    inner, options = resolve(spec), dict[str, Any](horizon_s=12.0)
    requests = Workload(rate=4.0, num_requests=40).generate(0)
    if inner.channel:
        from engine.demand.predictions import predict

        requests = predict(requests, inner.channel, 0)
    watched = Watched(inner)
    record = simulate(watched, requests, load_profile("rtx6000ada-mistral-7b"), EngineConfig(), **options)
    plain = simulate(inner, requests, load_profile("rtx6000ada-mistral-7b"), EngineConfig(), **options)
    assert watched.timed == watched.made
    assert len({str(batch) for batch in watched.made}) > 20
    assert np.array_equal(record.ledger, plain.ledger)
