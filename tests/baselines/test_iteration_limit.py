"""Every policy plans within the server's max_batched_tokens, whatever its own budget is."""

import pytest

import baselines
from agents.policies import resolve
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.workload import Workload, parse_workload
from engine.device.latency import load_profile
from engine.runs.simulate import simulate

WHOLE_PROMPTS = ("vllm", "orca", "fastertransformer")
"""Policies that do not split prompts: one longer than an iteration is dropped, as vLLM v0 ignores it."""


def _workload() -> Workload:
    return parse_workload("poisson:rate=4,num_requests=60")


@pytest.mark.parametrize("limit", [10, 600])
@pytest.mark.parametrize("spec", [*baselines.POLICIES, "sarathi:token_budget=1024", "pretrained", "random"])
def test_no_plan_is_beyond_the_servers_tokens_per_iteration(spec: str, limit: int) -> None:
    policy, requests = resolve(spec), _workload().generate(3)
    told = predict(requests, policy.channel, 0) if policy.channel else requests
    config = EngineConfig(max_batched_tokens=limit)
    record = simulate(policy, told, load_profile("rtx6000ada-mistral-7b"), config, log_steps=True)
    assert record.steps is not None
    assert int(record.row["batch_tokens"][0]) <= limit
    too_long = int((requests.prompt > limit).sum()) if spec in WHOLE_PROMPTS else 0
    assert 0 < too_long < len(requests) or spec not in WHOLE_PROMPTS
    assert int(record.row["dropped"][0]) == too_long
    assert int(record.row["finished"][0]) == len(requests) - too_long


@pytest.mark.parametrize(("spec", "budget"), [("sarathi", 512), ("vllm_v1", 2048), ("slai", 512)])
def test_a_limit_that_is_the_budget_changes_nothing(spec: str, budget: int) -> None:
    config, requests = EngineConfig(max_num_seqs=min(128, budget)), _workload().generate(3)
    free, tight = (
        simulate(baselines.make(spec), requests, load_profile("rtx6000ada-mistral-7b"), engine)
        for engine in (config, config.replace(max_batched_tokens=budget))
    )
    assert (free.ledger == tight.ledger).all()
