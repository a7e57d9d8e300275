"""A simulated engine that launches before it looks: without a launch it is the plain one, with one results are late."""

import numpy as np
import pytest

from agents.policies import resolve
from agents.vllm.launching import Host, serve
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel, load_profile
from engine.runs.metrics import summarize
from engine.runs.simulate import simulate

CONFIG = EngineConfig(max_num_seqs=64, max_batched_tokens=4096, num_blocks=20_000, async_scheduling=True)
DEVICE = LatencyModel(overhead=0.01, floor=0.0, per_token=1e-5, per_pair=0.0, per_context=0.0)


@pytest.mark.parametrize("spec", ["vllm_v1", "slai", "slackfit"])
def test_without_a_launch_it_is_the_plain_engine(spec: str) -> None:
    device = load_profile("h100-mistral-7b")
    requests = Workload(rate=6.0, num_requests=60).generate(0)
    policy = resolve(spec).on(device)
    found = summarize(serve(policy, requests, device, device, CONFIG, Host(0.0, 512.0)))
    plain = summarize(simulate(policy, requests, device, CONFIG))
    for one in ("ttft", "itl", "e2el"):
        assert getattr(found, one).mean == pytest.approx(getattr(plain, one).mean, rel=0.01)


def test_decodes_before_a_long_prompt_are_seen_when_it_has_been_launched() -> None:
    """A long prompt comes while one request decodes: that one waits once for the launch, and the prompt for no more."""
    requests = Requests.create([0.0, 0.1], [16, 1000], [40, 2])
    policy = resolve("vllm_v1")
    plain = simulate(policy, requests, DEVICE, CONFIG)
    late = serve(policy, requests, DEVICE, DEVICE, CONFIG, Host(0.05, 512.0))
    assert plain.ledger["max_gap"][0] == pytest.approx(0.02001, abs=1e-4)  # of the batch with the prompt
    assert late.ledger["max_gap"][0] == pytest.approx(0.05, abs=1e-3)
    launched = late.ledger["first_token"][1] - plain.ledger["first_token"][1]
    assert launched == pytest.approx(0.05 - 0.01 - 0.02, abs=2e-3)


def test_short_prompts_are_not_late() -> None:
    requests = Requests.create([0.0, 0.1], [16, 400], [40, 2])
    plain, late = (
        simulate(resolve("vllm_v1"), requests, DEVICE, CONFIG),
        serve(resolve("vllm_v1"), requests, DEVICE, DEVICE, CONFIG, Host(0.05, 512.0)),
    )
    assert np.allclose(plain.ledger["completed"], late.ledger["completed"])
