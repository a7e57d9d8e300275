"""The time of a decision is that of the decision which the simulation makes."""

from typing import Any

import numpy as np
import pytest

from agents.evaluation.window import decision_seconds
from agents.policies import resolve
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.simulate import simulate
from engine.server.plan import clear
from engine.server.state import Memory, Plan, View
from tests.toys import Observed, planned

Batch = list[tuple[int, int]]


@pytest.mark.parametrize("spec", ["slai", "sarathi", "slackfit:tuned", "pretrained", "rad", "mlfq", "alise", "wait"])
def test_the_decision_that_is_timed_is_the_one_that_is_made(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded so heavily that many decodes have marks and prompts wait; plans differ from one decision to the next."""
    monkeypatch.setattr("agents.evaluation.window.REPEATS", 3)
    monkeypatch.setattr("agents.evaluation.window.BLOCKS", 1)
    inner, options = resolve(spec), dict[str, Any](horizon_s=12.0)
    requests = Workload(rate=4.0, num_requests=40).generate(0)
    if inner.channel:
        requests = predict(requests, inner.channel, 0)
    made: list[Batch] = []
    timed: list[Batch] = []

    def take_time(view: View, memory: Memory, plan: Plan) -> None:
        before = [column.copy() for column in memory]
        assert decision_seconds(inner, view, memory, plan) >= 0.0
        assert all(np.array_equal(a, b) for a, b in zip(before, memory, strict=True))
        timed.append(planned(plan))
        clear(view, plan)

    def note(view: View, memory: Memory, plan: Plan) -> None:
        made.append(planned(plan))

    watched = Observed(inner, before=take_time, after=note)
    record = simulate(watched, requests, load_profile("rtx6000ada-mistral-7b"), EngineConfig(), **options)
    plain = simulate(inner, requests, load_profile("rtx6000ada-mistral-7b"), EngineConfig(), **options)
    assert timed == made
    assert len({str(batch) for batch in made}) > 20
    assert np.array_equal(record.ledger, plain.ledger)
