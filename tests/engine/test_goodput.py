"""Keys of `vllm bench serve` have its meaning: against its own formulas, written out here, on five requests."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

import baselines
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.runs.goodput import Goodput
from engine.runs.metrics import summarize
from engine.runs.record import Record
from engine.runs.simulate import simulate
from tests.toys import constant

HAND = LatencyModel(overhead=0.02, floor=0.0, per_token=0.001, per_pair=0.0, per_context=0.0)
"""An iteration takes 20 ms and 1 ms for each token."""


def five() -> Record:
    """Batches: 100 tokens of A; token of A and 50 of B; A. 200 of C; C and 10 of D; D; D; D. 80 of E; E four times."""
    requests = Requests.create([0.0, 0.05, 0.3, 0.31, 1.0], [100, 50, 200, 10, 80], [3, 1, 2, 4, 5], [1, 1, 0, 0, 1])
    return simulate(baselines.make("vllm_v1"), requests, HAND, log_steps=True)


@dataclass
class Output:
    """What vLLM's client knows of a request that succeeded."""

    start_time: float
    prompt_len: int
    token_times: list[float]

    @property
    def ttft(self) -> float:
        return self.token_times[0] - self.start_time

    @property
    def latency(self) -> float:
        return self.token_times[-1] - self.start_time

    @property
    def itl(self) -> list[float]:
        return np.diff(self.token_times).tolist()

    @property
    def tpot(self) -> float:
        tokens = len(self.token_times)
        return (self.latency - self.ttft) / (tokens - 1) if tokens > 1 else 0.0


OUTPUTS = (
    Output(0.0, 100, [0.12, 0.191, 0.212]),
    Output(0.05, 50, [0.191]),
    Output(0.3, 200, [0.52, 0.551]),
    Output(0.31, 10, [0.551, 0.572, 0.593, 0.614]),
    Output(1.0, 80, [1.1, 1.121, 1.142, 1.163, 1.184]),
)
DURATION = 1.184


def test_numbers_of_five_requests_are_those_of_vllm() -> None:
    data = summarize(five(), goodput=Goodput(ttft=200.0, tpot=50.0)).to_dict()
    ttfts, e2els = [o.ttft for o in OUTPUTS], [o.latency for o in OUTPUTS]
    tpots = [o.tpot for o in OUTPUTS if len(o.token_times) > 1]
    for name, sample in {"ttft": ttfts, "ttft_completed": ttfts, "tpot": tpots, "e2el": e2els}.items():
        assert data[f"mean_{name}_ms"] == pytest.approx(1000.0 * np.mean(sample))
        assert data[f"median_{name}_ms"] == pytest.approx(1000.0 * np.median(sample))
        assert data[f"std_{name}_ms"] == pytest.approx(1000.0 * np.std(sample))
        for percent in ("90", "99", "99.9"):
            assert data[f"p{percent}_{name}_ms"] == pytest.approx(1000.0 * np.percentile(sample, float(percent)))
    gaps = [gap for o in OUTPUTS for gap in o.itl]
    assert data["mean_itl_ms"] == pytest.approx(1000.0 * np.mean(gaps))
    assert data["median_itl_ms"] == pytest.approx(1000.0 * np.median(gaps), rel=0.002)
    assert data["std_itl_ms"] == pytest.approx(1000.0 * np.std(gaps), rel=0.002)
    good = sum(o.ttft <= 0.2 and o.tpot <= 0.05 for o in OUTPUTS)
    assert data["request_goodput"] == pytest.approx(good / DURATION) == pytest.approx(2.534, abs=5e-4)
    assert (data["completed"], data["failed"], data["duration"]) == (5, 0, pytest.approx(DURATION))
    assert (data["total_input_tokens"], data["total_output_tokens"]) == (440, 15)
    assert data["request_throughput"] == pytest.approx(5 / DURATION)
    assert data["output_throughput"] == pytest.approx(15 / DURATION)
    assert data["total_token_throughput"] == pytest.approx(455 / DURATION)
    # A and B overlap, C and D do, E is alone.
    assert data["max_concurrent_requests"] == 2


def test_without_limits_there_is_no_goodput_of_vllm() -> None:
    data = summarize(five()).to_dict()
    assert data["request_goodput"] is None
    assert data["slo_goodput"] == pytest.approx(5 / DURATION)


def test_a_pause_that_the_mean_hides_counts_for_slo_goodput_only() -> None:
    """Limits of 200 ms and 50 ms for every tier: A's gaps are 71 and 21 ms, its mean 46 ms."""
    record = five()
    tiers = tuple(replace(tier, tbt_s=0.05, ttft_s=0.2) for tier in record.requests.tiers)
    record = simulate(baselines.make("vllm_v1"), record.requests.replace(tiers=tiers), HAND)
    data = summarize(record, goodput=Goodput(ttft=200.0, tpot=50.0)).to_dict()
    assert data["slo_goodput"] == pytest.approx(2 / DURATION) == pytest.approx(1.689, abs=5e-4)
    assert data["request_goodput"] == pytest.approx(3 / DURATION)


def test_requests_that_failed_are_left_out_as_by_vllm() -> None:
    """At 0.3 s, A and B are done and C has come: its wait counts in TTFT, and vLLM leaves it out."""
    requests = five().requests
    record = simulate(baselines.make("vllm_v1"), requests, HAND, horizon_s=0.3)
    data = summarize(record, goodput=Goodput(e2el=200.0)).to_dict()
    assert (data["completed"], data["failed"], data["arrived"]) == (2, 1, 3)
    assert (data["total_input_tokens"], data["total_output_tokens"]) == (150, 4)
    assert data["request_goodput"] == pytest.approx(1 / data["duration"])
    assert data["mean_ttft_completed_ms"] == pytest.approx(1000.0 * (0.12 + 0.141) / 2)


def test_a_request_that_comes_when_another_ends_is_not_concurrent() -> None:
    requests = Requests.create([0.0, 0.25, 0.25], [100, 50, 50], [1, 1, 1])
    report = summarize(simulate(baselines.make("vllm_v1"), requests, constant(0.25)))
    assert report.max_concurrent_requests == 2


def test_the_arrival_rate_is_that_of_the_requests_that_came() -> None:
    assert summarize(five()).arrival_rate == pytest.approx(4.0)
    assert summarize(five(), warmup_s=0.05).arrival_rate == pytest.approx(3 / 0.95)
    alone = simulate(baselines.make("vllm_v1"), Requests.create([0.5], [10], [1]), HAND)
    assert summarize(alone).to_dict()["arrival_rate"] is None


def test_goodput_is_read_as_on_the_command_line_of_vllm() -> None:
    assert Goodput.parse(("ttft:200", "tpot:50")) == Goodput(ttft=200.0, tpot=50.0)
    assert Goodput.parse(("e2el:0",)) == Goodput(e2el=0.0)
    wrong = ("itl:50", "ttft=200", "ttft:-1", "ttft:nan", "e2el:inf", "ttft:x", "")
    for pairs in (*((pair,) for pair in wrong), ("ttft:1", "ttft:2")):
        with pytest.raises(InputError, match=r"goodput: expected ttft:MS, tpot:MS or e2el:MS .* got '"):
            Goodput.parse(pairs)
    with pytest.raises(InputError, match="at least one of"):
        Goodput()
    with pytest.raises(InputError, match="tpot: expected milliseconds >= 0, got -1"):
        Goodput(tpot=-1.0)
