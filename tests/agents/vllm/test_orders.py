"""Which order a measurement gives, which pairs it tells apart, and how far a prediction agrees: on made-up numbers."""

import numpy as np
import pytest

from agents.vllm.orders import Pair, compare_policies, errors
from agents.vllm.plan import Cell, Plan
from agents.vllm.results import METRICS, Measured, Served, numbers_of

COUNT = 60


def _pair(policy: str, seed: int, ttft: float, predicted: float, good: float = 1.0) -> Pair:
    """A cell whose requests have this TTFT on average, and one of them for each seed a little more or less."""
    plan = Plan(policies=(policy,), rates=(2.0,), num_requests=COUNT)
    spread = np.random.default_rng(seed).normal(0.0, 0.01, COUNT)
    tier = np.arange(COUNT) % 2
    gaps = tuple(np.full(3, 0.05) for _ in range(COUNT))
    finish = np.full(COUNT, 30.0 + ttft + seed)
    served = Served(ttft + spread, finish, ttft + spread + 0.15, tier, np.full(COUNT, good), gaps)
    measured = Measured(Cell(policy, 2.0, seed), plan, served, None)
    real = numbers_of(served, measured.tiers())
    return Pair(measured, real, dict.fromkeys(METRICS, 1.0) | {"mean_ttft_s": predicted})


def _ranks(pairs: list[Pair]) -> dict[str, tuple[float, int, float]]:
    return {one.metric: (one.tau, one.told_apart, one.tau_told_apart) for one in compare_policies(pairs)[1]}


def test_tau_counts_pairs_in_order_and_pairs_that_are_not() -> None:
    right = [_pair("a", 0, 0.1, 1.0), _pair("b", 0, 0.2, 2.0), _pair("c", 0, 0.3, 3.0)]
    assert _ranks(right)["mean_ttft_s"] == (1.0, 3, 1.0)
    one_wrong = [_pair("a", 0, 0.1, 2.0), _pair("b", 0, 0.2, 1.0), _pair("c", 0, 0.3, 3.0)]
    tau, told, of_told = _ranks(one_wrong)["mean_ttft_s"]
    assert [tau, of_told] == pytest.approx([1 / 3, 1 / 3])
    assert told == 3


def test_ties_are_left_out_and_a_tie_of_all_is_no_order() -> None:
    """Two policies that meet every SLO and a third that does not; then three that do."""
    some = [_pair("a", 0, 0.1, 1.0), _pair("b", 0, 0.1, 2.0), _pair("c", 0, 0.3, 3.0)]
    tau, told, of_told = _ranks(some)["mean_ttft_s"]
    assert tau == pytest.approx(2 / np.sqrt(2 * 3))  # two pairs are untied in the measurement, three in the prediction
    assert (told, of_told) == (2, 1.0)
    tau, told, of_told = _ranks(some)["slo_met"]
    assert np.isnan(tau)
    assert np.isnan(of_told)
    assert told == 0


def test_prediction_without_a_difference_is_half_wrong() -> None:
    pairs = [_pair("a", 0, 0.1, 1.0), _pair("b", 0, 0.2, 1.0), _pair("c", 0, 0.3, 3.0)]
    assert _ranks(pairs)["mean_ttft_s"][2] == pytest.approx(2 / 3)


def test_pairs_are_of_the_seeds_that_both_have_and_repeats_count() -> None:
    """The policy c was served for one seed only, where all are slower: beside the others it is the fastest."""
    pairs = [_pair("a", 0, 0.1, 2.0), _pair("b", 0, 0.2, 3.0), _pair("a", 1, 1.1, 2.0), _pair("b", 1, 1.2, 3.0)]
    pairs += [_pair("c", 1, 1.0, 1.0), _pair("c", 1, 1.0, 1.0)]
    differences, ranks = compare_policies(pairs)
    values = {(one.policy, one.reference): one.value for one in differences if one.metric == "mean_ttft_s"}
    assert values == {
        ("b", "a"): pytest.approx(0.1),
        ("c", "a"): pytest.approx(-0.1),
        ("c", "b"): pytest.approx(-0.2),
    }
    assert next(one for one in ranks if one.metric == "mean_ttft_s").tau == 1.0


def test_makespan_of_one_seed_has_no_interval_and_of_two_has_one() -> None:
    one = [_pair("a", 0, 0.1, 1.0), _pair("b", 0, 0.2, 2.0)]
    found = {d.metric: d for d in compare_policies(one)[0]}
    assert found["makespan_s"].value == pytest.approx(0.1)
    for metric in ("goodput", "makespan_s"):
        assert np.isnan(found[metric].low)
        assert not found[metric].is_told
    two = [*one, _pair("a", 1, 0.1, 1.0), _pair("b", 1, 0.2, 2.0)]
    assert next(d for d in compare_policies(two)[0] if d.metric == "makespan_s").is_told


def test_errors_are_medians_over_the_cells() -> None:
    pairs = [_pair("a", 0, 0.1, 0.11), _pair("b", 0, 0.2, 0.1), _pair("c", 0, 0.5, 0.6)]
    pairs = [
        Pair(p.measured, {**p.real, "mean_ttft_s": ttft}, p.predicted)
        for p, ttft in zip(pairs, (0.1, 0.2, 0.5), strict=True)
    ]
    assert errors(pairs)["mean_ttft_s"] == pytest.approx(0.2)
