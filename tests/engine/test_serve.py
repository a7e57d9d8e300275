"""Serving a trace: what is drawn, predicted, simulated and summarised is what the parts would do one by one."""

import numpy as np
import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.runs.goodput import Goodput
from engine.runs.metrics import summarize
from engine.runs.serve import Deployment, RequestSource, Synthetic, serve
from engine.runs.simulate import simulate
from tests.toys import constant

WORKLOAD = Workload(rate=2.0, num_requests=30, lengths="lognormal:4,0.5,3,0.5,512")
DEVICE = constant(0.02)


@pytest.mark.parametrize("name", ["sarathi", "srtf"])
def test_serving_is_drawing_predicting_simulating_and_summarising(name: str) -> None:
    """`srtf` needs predictions, `sarathi` none."""
    policy = baselines.make(name)
    limits = Goodput(ttft=500.0)
    deployment = Deployment(executor=DEVICE, config=EngineConfig(max_num_seqs=4), warmup_s=1.0, goodput=limits)
    found = serve(policy, Synthetic(WORKLOAD), None, 3, deployment)
    requests = WORKLOAD.generate(3)
    told = predict(requests, policy.channel, 3) if policy.channel else requests
    record = simulate(policy, told, DEVICE, EngineConfig(max_num_seqs=4))
    assert np.array_equal(found.record.ledger, record.ledger)
    assert found.report == summarize(record, warmup_s=1.0, goodput=limits)
    assert found.record.requests.digest() == told.digest()


def test_a_load_replaces_the_rate_of_a_workload() -> None:
    assert Synthetic(WORKLOAD).requests(4.0, 0).rate == pytest.approx(2.0 * Synthetic(WORKLOAD).requests(None, 0).rate)


def test_a_source_of_ones_own_says_what_comes_and_what_is_predicted() -> None:
    class Pair(RequestSource):
        def requests(self, rate: float | None, seed: int) -> Requests:
            return Requests.create([0.0, 0.5], [16, 16], [3, 2])

        def channel(self, policy: object) -> str:
            return "oracle"

    run = serve(baselines.make("srtf"), Pair(), None, 0, Deployment(executor=DEVICE))
    assert (run.report.completed, run.record.requests.forecast.channel) == (2, "oracle")
    assert run.record.requests.prediction.tolist() == [3.0, 2.0]


def test_a_run_stops_at_the_horizon_of_its_server() -> None:
    run = serve(baselines.make("sarathi"), Synthetic(WORKLOAD), None, 0, Deployment(executor=DEVICE, horizon_s=2.0))
    assert run.report.unfinished > 0
