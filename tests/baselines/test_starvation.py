"""Who starves under overload: 2.2 requests/s, about 1.1 times what the server can do, so that work piles up.

Orders by length buy the short prompts' TTFT with that of the long ones; first come, first served and feedback queues
spread the wait over everybody.
"""

import numpy as np
import pytest

import baselines
from engine.latency import load_profile
from engine.simulate import simulate
from engine.workload import Workload

REQUESTS = Workload(rate=2.2, num_requests=2000).generate(1)
LONG = REQUESTS.prompt >= np.quantile(REQUESTS.prompt, 0.9)


def tail_ratio(spec: str) -> float:
    """p99 TTFT of the longest tenth of the prompts over that of the others."""
    record = simulate(baselines.make(spec), REQUESTS, load_profile("rtx6000ada-mistral-7b"))
    ttft = record.ledger["first_token"] - REQUESTS.arrival
    return float(np.quantile(ttft[LONG], 0.99) / np.quantile(ttft[~LONG], 0.99))


@pytest.mark.parametrize("spec", ["sarathi:order=spf", "slai"])
def test_orders_by_prompt_length_starve_long_prompts(spec: str) -> None:
    assert tail_ratio(spec) > 10.0


@pytest.mark.parametrize("spec", ["vllm", "sarathi", "slai:order=fcfs", "rad", "mlfq"])
def test_the_others_let_long_prompts_wait_no_longer_than_short_ones(spec: str) -> None:
    assert tail_ratio(spec) < 1.5
