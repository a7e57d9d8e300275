"""EB and EB+: their formulas against numbers worked out by hand, phases, and the change between the two."""

from dataclasses import replace

import numpy as np
import pytest

from baselines.eb import EB
from baselines.families.exclusive import (
    COSTS,
    base_threshold,
    correction,
    costs_of,
    fit_hazard,
    gain_of_exclusive,
    safe_batch,
)
from baselines.families.finished import VALUE
from baselines.vllm_v1 import VLLMV1
from engine.compiled.records import record, records
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.simulate import simulate
from engine.server.policy import Policy
from tests.toys import burst, constant


def costs(**given: float) -> np.record:
    """Costs of a device: those given, the others 0."""
    found = record(COSTS)(np.zeros(len(COSTS.names or ())))
    for name, value in given.items():
        found[name] = value
    return found


def tokens(policy: Policy, requests: Requests, config: EngineConfig | None = None) -> list[dict[int, int]]:
    """Tokens by request, in order, for each iteration of a run that serves everybody, one second each."""
    run = simulate(policy, requests, constant(1.0), config, log_steps=True)
    assert int(run.row["finished"][0]) == len(requests)
    assert run.steps is not None
    return [{int(i): int(n) for i, n, _ in batch} for batch in run.steps.batches]


def test_the_threshold_balances_the_fixed_costs() -> None:
    """0.5 / 0.5 + ln 0.5 = 0.306853, and for costs that hardly matter the least threshold."""
    assert base_threshold(costs(a_p=3.06853, a_d=1.0), 0.1) == pytest.approx(0.5, abs=1e-5)
    assert base_threshold(costs(a_p=0.0, a_d=1.0), 0.1) == 0.01


def test_a_rising_hazard_raises_the_threshold() -> None:
    """With L = ln 2 and b_d N / a_d = 1: L (1 - L / 2) + L - 0.5 = 0.646063, times 0.001 x 0.25 / (0.01 x 0.5)."""
    found = correction(costs(a_d=1.0, b_d=0.01), 0.5, 0.1, 0.001, 100.0)
    assert found == pytest.approx(0.05 * 0.646063, rel=1e-5)
    assert correction(costs(a_d=1.0, b_d=0.01), 0.5, 0.1, 0.0, 100.0) == 0.0
    assert correction(costs(a_d=1.0, b_d=0.01), 0.5, 0.001, 1.0, 100.0) == 2.5


def test_the_hazard_is_a_weighted_line_through_the_middle_of_the_outputs() -> None:
    """Outputs 1, 2, ..., 100: of 101 - t that reach t tokens, one ends; from the 6th value to the 96th."""
    values = records(VALUE)(np.zeros((100, 2)))
    values.ranked[:] = np.arange(1, 101)
    t = np.arange(6, 97)
    slope, start = np.polyfit(t, 1.0 / (101 - t), 1, w=np.sqrt(101 - t))
    assert fit_hazard(values, 100) == pytest.approx((max(start, 1 / 50.5), slope))


def test_the_memory_safe_batch_is_the_largest_that_fits() -> None:
    """With L = ln 2 a request holds 100 + ln 2 / 0.01 = 169.3 tokens in the mean."""
    depth = np.log(2.0)
    spread = np.sqrt(2.0 * depth * (1.0 + (1.0 + 2.0 * depth) ** 2)) / 0.01 * np.sqrt(np.log(100.0))

    def needed(n: float) -> float:
        return float(n * (100.0 + depth / 0.01) + spread * np.sqrt(n))

    found = safe_batch(0.5, 0.01, 100.0, 20_000.0, 0.01)
    assert needed(found) <= 20_000.0 < needed(found + 1.0)


def test_exclusive_batches_gain_what_mixing_costs_less_their_fixed_parts() -> None:
    """Halves of prompt and output: 3 - 1.5, less (2 + 10 ln 2 x 1) / (0.5 x 100) - 2 x 11 / 100, over 20 tokens."""
    device = costs(a_p=2.0, b_p=1.0, a_d=1.0, b_d=2.0, mix_a=1.0, mix_b=2.0, mix_c=4.0)
    expected = 3.0 - 1.5 - ((2.0 + 10.0 * np.log(2.0)) / 50.0 - 22.0 / 100.0) / 20.0
    assert gain_of_exclusive(device, 0.5, 100.0, 10.0, 10.0) == pytest.approx(expected)


def test_costs_of_the_h200_are_near_those_published() -> None:
    """Decodes of Mistral-7B: 6.68 ms and 41.6 us each, by the authors' calibration."""
    found = record(COSTS)(costs_of(load_profile("h200-mistral-7b")))
    assert found.a_d == pytest.approx(6.68e-3, rel=0.1)
    assert found.b_d == pytest.approx(4.16e-5, rel=0.1)


def test_prompts_enter_in_phases_when_the_threshold_has_left() -> None:
    """Two seats and a threshold of one half: request 2 waits until one has left, then its prompt runs alone."""
    batches = tokens(EB(k_ratio=0.5), burst([4, 4, 4], [3, 5, 2]), EngineConfig(max_num_seqs=2))
    assert batches == [{0: 4, 1: 4}, {0: 1, 1: 1}, {0: 1, 1: 1}, {2: 4}, {1: 1, 2: 1}, {1: 1}]


def test_one_that_leaves_is_not_enough_below_the_threshold() -> None:
    """Four seats, two of which must be free, for one half: request 4 waits for the second one that leaves."""
    batches = tokens(EB(k_ratio=0.5), burst([4] * 6, [2, 3, 9, 9, 1, 1]), EngineConfig(max_num_seqs=4))
    assert batches[:4] == [dict.fromkeys(range(4), 4), dict.fromkeys(range(4), 1), {1: 1, 2: 1, 3: 1}, {4: 4, 5: 4}]


def test_eb_plus_begins_as_vllm_and_leaves_mixed_batches_where_they_cost_much() -> None:
    requests = Workload(arrivals="burst", num_requests=600, lengths="fixed:200,100").generate(0)
    model = replace(load_profile("h100-mistral-7b"), per_mixed=1e-5)
    steps = simulate(EB(mode="auto").on(model), requests, model, log_steps=True).steps
    vllm = simulate(VLLMV1(max_num_batched_tokens=8192), requests, model, log_steps=True).steps
    assert steps is not None
    assert vllm is not None
    mixed = [len(set((batch[:, 2] == 1).tolist())) == 2 for batch in steps.batches]
    assert all(np.array_equal(a, b) for a, b in zip(steps.batches[:100], vllm.batches[:100], strict=True))
    assert any(mixed[:200])
    assert not any(mixed[len(mixed) // 2 :])


def test_eb_plus_stays_with_mixed_batches_where_they_cost_nothing() -> None:
    requests = Workload(rate=1.8, num_requests=400).generate(0)
    model = load_profile("rtx6000ada-mistral-7b")
    ours = simulate(EB(mode="auto", mode_switch_delta=1e-6), requests, model)
    vllm = simulate(VLLMV1(max_num_batched_tokens=8192), requests, model)
    assert np.array_equal(ours.ledger, vllm.ledger)
