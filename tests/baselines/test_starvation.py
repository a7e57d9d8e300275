"""Who starves under overload: 2.2 requests/s, about 1.1 times what the server can do, so that work piles up.

Orders by length buy the short requests' TTFT with that of the long ones: by prompt length with that of long prompts, by
predicted output length with that of long outputs. First come, first served, feedback queues, quotas and aging spread
the wait over everybody.
"""

from functools import cache

import numpy as np
import pytest

import baselines
from engine.demand.predictions import predict
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.simulate import simulate

REQUESTS = Workload(rate=2.2, num_requests=2000).generate(1)

SHORTEST = ("sarathi:order=spf", "sglang:schedule_policy=shortest-prefill-first")
"""Orders by prompt length that are no defaults."""
STARVING = {"slai", "ltr", "trail", "elis", "srtf", "slackfit", "clairvoyant", "preflow", "mcsf", "svf", "amin"}
"""Baselines whose longest wait is many times the mean one."""
BY_PROMPT = ("slai", "slackfit", "clairvoyant", "preflow", "svf")
"""Those of them that let long prompts wait."""


@cache
def ttft(spec: str) -> np.ndarray:
    """Wait for the first token of each request (s)."""
    policy = baselines.make(spec)
    told = predict(REQUESTS, policy.channel, 0) if policy.channel else REQUESTS
    record = simulate(policy, told, load_profile("rtx6000ada-mistral-7b"))
    return np.asarray(record.ledger["first_token"] - REQUESTS.arrival)


def tail_ratio(spec: str, lengths: np.ndarray) -> float:
    """p99 TTFT of the longest tenth over that of the others."""
    longest = lengths >= np.quantile(lengths, 0.9)
    return float(np.quantile(ttft(spec)[longest], 0.99) / np.quantile(ttft(spec)[~longest], 0.99))


@pytest.mark.parametrize("spec", [*baselines.names(), *SHORTEST, "slai:order=fcfs"])
def test_some_wait_many_times_as_long_as_the_mean_or_nobody_does(spec: str) -> None:
    ratio = float(ttft(spec).max() / ttft(spec).mean())
    if spec in STARVING.union(SHORTEST):
        assert ratio > 8.0
    else:
        assert ratio < 4.0


@pytest.mark.parametrize("spec", [*SHORTEST, *BY_PROMPT])
def test_orders_by_prompt_length_starve_long_prompts(spec: str) -> None:
    half = spec == "svf"  # a volume is about prompt times output
    assert tail_ratio(spec, REQUESTS.prompt) > (5.0 if half else 10.0)


@pytest.mark.parametrize("spec", sorted({*baselines.names(), "slai:order=fcfs"}.difference(BY_PROMPT)))
def test_the_others_let_long_prompts_wait_no_longer_than_short_ones(spec: str) -> None:
    assert tail_ratio(spec, REQUESTS.prompt) < 1.5


def test_orders_by_output_length_let_long_outputs_wait() -> None:
    assert all(tail_ratio(spec, REQUESTS.output) > 5.0 for spec in ("srtf", "mcsf", "svf", "amin"))
    assert tail_ratio("ltr", REQUESTS.output) > 1.6
    assert tail_ratio("sarathi", REQUESTS.output) < 1.2
