"""The bound on the capacity: nobody serves faster, and with all the company there is it is almost reached."""

import numpy as np
import pytest

import baselines
from engine.bounds import least_seconds
from engine.config import EngineConfig
from engine.latency import LatencyModel, load_profile
from engine.requests import Requests
from engine.simulate import simulate
from engine.workload import Workload

CONFIG = EngineConfig()
BURST = Workload(arrivals="burst", num_requests=150).generate(0)


@pytest.mark.parametrize("profile", ["rtx6000ada-mistral-7b", "cpu-tiny-mistral", "tile-unit"])
@pytest.mark.parametrize("policy", ["sarathi", "sarathi:token_budget=8192", "slai", "vllm", "slackfit"])
def test_no_policy_is_busy_for_less(profile: str, policy: str) -> None:
    model = load_profile(profile)
    busy = float(simulate(baselines.make(policy), BURST, model, CONFIG).row["busy"][0])
    assert least_seconds(model, CONFIG, BURST).sum() <= busy


def test_one_request_alone_by_hand() -> None:
    """10 prompt and 4 output tokens (3 decodes): 1 s per token, 0.1 s per pair, 0.01 s per KV token read."""
    model = LatencyModel(overhead=0.0, floor=0.0, per_token=1.0, per_pair=0.1, per_context=0.01)
    requests = Requests.create([0.0], [10], [4])
    found = least_seconds(model, CONFIG, requests)
    assert found.tolist() == pytest.approx([13.0 + 0.1 * 55 + 0.01 * (10 + 11 + 12)])
    busy = float(simulate(baselines.make("sarathi"), requests, model, CONFIG).row["busy"][0])
    assert found[0] <= busy <= 1.02 * found[0]


def test_a_large_batch_shares_overhead_and_weights() -> None:
    model = LatencyModel(overhead=1.0, floor=50.0, per_token=0.01, per_pair=0.0, per_context=0.0)
    config = EngineConfig(max_batched_tokens=10_000)
    requests = Requests.create(np.zeros(10), [1000] * 10, [1] * 10)
    busy = float(simulate(baselines.make("sarathi:token_budget=10000"), requests, model, config).row["busy"][0])
    assert least_seconds(model, config, requests).sum() == pytest.approx(busy)


def test_a_table_is_read_where_a_token_costs_least() -> None:
    table = ((1.0, 1.0), (100.0, 10.0), (200.0, 30.0))
    model = LatencyModel(overhead=0.0, floor=0.0, per_token=0.0, per_pair=0.0, per_context=0.0, table=table)
    assert least_seconds(model, CONFIG, Requests.create([0.0], [50], [1])).tolist() == pytest.approx([50 * 0.1])
