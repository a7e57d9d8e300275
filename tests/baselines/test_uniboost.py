"""UniBoost by hand: keys, the order that they make, and gamma after a heavy tail."""

import numpy as np
import pytest

import baselines
from baselines.families.finished import RING, VALUE, Recent, remember_value
from baselines.uniboost import SERVER, UniBoost, boost_key, next_gamma
from engine.compiled.records import record, records
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.simulate import simulate
from engine.server.state import Memory, Plan, View
from tests.toys import Observed, steps_of, tokens_of


def batches(policy: UniBoost, requests: Requests) -> list[dict[int, int]]:
    """Tokens by request, in order, for each iteration of a run that serves everybody, one second each."""
    return tokens_of(steps_of(policy, requests))


def test_a_key_is_the_arrival_less_the_boost() -> None:
    """Gamma 2, 0.5 s of work: ln(1 / (1 - 1 / e)) / 2 = 0.229338 s earlier."""
    assert boost_key(2.0, 3.0, 0.5) == pytest.approx(3.0 - 0.229338, abs=1e-6)
    assert boost_key(50.0, 3.0, 0.5) == pytest.approx(3.0)


def test_a_short_prompt_overtakes_those_that_came_little_earlier() -> None:
    """Keys 0.049, -0.433 and 0.441 s: request 2 (5 tokens), then 1 (30 tokens), then 3 (10 tokens)."""
    requests = Requests.create([0.0, 0.1, 0.5, 0.9], [40, 30, 5, 10], [1, 1, 1, 1])
    policy = UniBoost(gamma=1.0, alpha=0.1, chunked_prefill_size=20)
    assert batches(policy, requests)[2:] == [{2: 5, 1: 15}, {1: 15, 3: 5}, {3: 5}]


def test_a_large_gamma_is_first_come_first_served_and_a_small_one_shortest_first() -> None:
    requests = Workload(rate=2.0, num_requests=300).generate(0)
    model = load_profile("rtx6000ada-mistral-7b")

    def ttft(spec: str) -> np.ndarray:
        return np.asarray(simulate(baselines.make(spec), requests, model).ledger["first_token"] - requests.arrival)

    assert np.array_equal(ttft("uniboost:gamma=1e5"), ttft("sglang"))
    assert ttft("uniboost:gamma=0.001").mean() < 0.9 * ttft("sglang").mean()


def test_gamma_falls_with_a_heavy_tail() -> None:
    """t99 twice t95: the target is 40, and 30 % of the way from 10 are 9; with none it is 200."""
    assert next_gamma(10.0, 1.0, 2.0) == pytest.approx(19.0)
    assert next_gamma(100.0, 1.0, 1.0) == pytest.approx(130.0)
    assert next_gamma(1.0, 1.0, 1e6) == 1.0


def test_the_last_values_are_kept_in_order() -> None:
    recent = Recent(record(RING)(np.zeros(2)), records(VALUE)(np.zeros((5, 2))), 5)
    for value in (3.0, 1.0, 2.0, 9.0, 5.0, 4.0, 1.0):
        remember_value(recent, value)
    assert recent.value.ranked.tolist() == [1.0, 2.0, 4.0, 5.0, 9.0]


def test_gamma_is_adapted_every_five_seconds_from_200_latencies_on() -> None:
    seen: list[tuple[float, float, int]] = []

    def look(view: View, memory: Memory, plan: Plan) -> None:
        server = record(SERVER)(memory.row)
        seen.append((float(server.gamma), float(server.adapted_s), int(server.latencies.held)))

    requests = Workload(rate=2.0, num_requests=400).generate(0)
    simulate(Observed(UniBoost(adaptive=True), after=look), requests, load_profile("rtx6000ada-mistral-7b"))
    assert all((gamma == 10.0) == (held < 200) for gamma, _, held in seen)
    times = sorted({adapted for _, adapted, _ in seen})
    assert len(times) > 5
    assert min(np.diff(times[1:])) >= 5.0
