"""Workloads: arrival processes, tiers, spec strings."""

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.demand import arrivals
from engine.demand.length_models import LENGTH_FORMS, EmpiricalLengths, FixedLengths, table_names
from engine.demand.processes import ArrivalName
from engine.demand.requests import DEFAULT_TIERS, Tier
from engine.demand.workload import (
    Workload,
    length_descriptions,
    parse_workload,
    workload_descriptions,
    workload_names,
)
from engine.errors import InputError

LEVELS = (0.1, 0.5, 0.9, 0.99)


def gaps(workload: Workload, seed: int = 0) -> Any:
    return np.diff(workload.generate(seed).arrival, prepend=0.0)


def test_poisson_gaps_are_exponential() -> None:
    values = gaps(Workload(rate=2.5, num_requests=100_000))
    assert values.mean() == pytest.approx(1 / 2.5, rel=0.02)
    assert np.quantile(values, LEVELS) == pytest.approx(-np.log1p(-np.array(LEVELS)) / 2.5, rel=0.03)


@pytest.mark.parametrize("cv", [0.5, 1.0, 1.5, 3.0])
def test_gamma_gaps_have_the_mean_and_variation_asked_for(cv: float) -> None:
    values = gaps(Workload(rate=4.0, num_requests=100_000, arrivals="gamma", cv=cv))
    assert values.std() / values.mean() == pytest.approx(cv, rel=0.03)
    assert values.mean() == pytest.approx(0.25, rel=0.03)


def test_gamma_with_cv_one_is_poisson() -> None:
    gamma = Workload(arrivals="gamma", cv=1.0).generate(5)
    assert gamma.digest() == Workload(arrivals="poisson").generate(5).digest()


def test_capped_gaps_raise_the_rate_as_in_the_slai_code() -> None:
    values = gaps(Workload(rate=2.0, num_requests=200_000, gap_cap=3.0))
    assert values.max() == pytest.approx(1.5)
    assert 1 / values.mean() == pytest.approx(2.0 / (1 - np.exp(-3.0)), rel=0.01)


def test_on_off_arrivals_keep_the_mean_rate_and_are_overdispersed() -> None:
    requests = Workload(rate=5.0, num_requests=200_000, arrivals="onoff").generate(0)
    assert requests.rate == pytest.approx(5.0, rel=0.05)
    counts = np.bincount((requests.arrival // 10.0).astype(int))[:-1]
    assert counts.var() / counts.mean() > 5.0
    # 60 s at half the rate and 30 s at twice the rate: a third of the time is busy.
    busy = counts > 62.5
    assert busy.mean() == pytest.approx(1 / 3, abs=0.03)


def test_on_off_arrivals_with_a_silent_state_pause() -> None:
    quiet = Workload(rate=10.0, num_requests=20_000, arrivals="onoff", off_factor=0.0, on_factor=3.0)
    values = gaps(quiet)
    pauses = values[values > 3.0]
    assert pauses.mean() == pytest.approx(60.0, rel=0.25)
    assert np.median(values) == pytest.approx(np.log(2) / 30.0, rel=0.05)


@pytest.mark.parametrize(("rate", "end_rate"), [(1.0, 4.0), (4.0, 1.0), (2.0, 2.0), (3.0, 0.01)])
def test_ramps_go_linearly_from_rate_to_end_rate(rate: float, end_rate: float) -> None:
    n = 50_000
    requests = Workload(rate=rate, num_requests=n, arrivals="ramp", ramp_end_rate=end_rate).generate(0)
    length_s = 2 * n / (rate + end_rate)
    edges = np.linspace(0.0, length_s, 11)
    counts = np.histogram(requests.arrival, edges)[0]
    middles = rate + (end_rate - rate) * (np.arange(10) + 0.5) / 10
    # The number of requests is fixed, so the last of them may come before or after the end of the ramp.
    assert counts[:9] == pytest.approx(middles[:9] * length_s / 10, rel=0.1)


def test_ramp_of_regular_operational_times_solves_the_quadratic() -> None:
    operational = np.arange(1.0, 101.0)
    times = arrivals.ramp(operational, 1.0, 3.0)
    length_s = 2 * 100 / 4.0
    assert times[-1] == pytest.approx(length_s)
    assert times + (3.0 - 1.0) / length_s * times**2 / 2 == pytest.approx(operational)


def test_steps_raise_the_rate_for_a_while() -> None:
    workload = Workload(
        rate=20.0, num_requests=100_000, arrivals="step", step_factor=3.0, step_s=10.0, step_every_s=50.0
    )
    times = workload.generate(0).arrival
    phase, periods = times % 50.0, times[-1] / 50.0
    assert np.count_nonzero(phase < 40.0) / (40.0 * periods) == pytest.approx(20.0, rel=0.02)
    assert np.count_nonzero(phase >= 40.0) / (10.0 * periods) == pytest.approx(60.0, rel=0.02)


def test_steps_of_regular_operational_times_by_hand() -> None:
    """Rate 1 for 2 s, then rate 3 for 1 s: five arrivals in each period of 3 s."""
    times = arrivals.steps(np.array([1.0, 2.0, 3.5, 5.0, 6.0, 11.0]), (1.0, 3.0), (2.0, 1.0))
    assert times.tolist() == pytest.approx([1.0, 2.0, 2.5, 3.0, 4.0, 7.0])


def test_burst_arrives_at_once() -> None:
    requests = Workload(arrivals="burst", num_requests=50).generate(0)
    assert requests.arrival.tolist() == [0.0] * 50


def test_toy_is_the_documented_instance_for_every_seed() -> None:
    toy = parse_workload("toy")
    requests = toy.generate(0)
    assert requests.arrival.tolist() == [2.0 * index for index in range(8)]
    assert set(requests.prompt.tolist()) == {512}
    assert set(requests.output.tolist()) == {8}
    assert set(requests.tier.tolist()) == {1}
    assert toy.generate(1).digest() == requests.digest()


DRAWN = [name for name in workload_names() if name != "recorded"]  # that one needs a file


@settings(deadline=None)
@given(st.sampled_from(DRAWN), st.integers(0, 2**63), st.integers(1, 300))
def test_same_seed_same_requests_and_every_request_is_valid(name: str, seed: int, n: int) -> None:
    workload = parse_workload(f"{name}:num_requests={n}")
    requests = workload.generate(seed)
    assert len(requests) == n
    assert requests.digest() == workload.generate(seed).digest()
    assert np.all(np.diff(requests.arrival) >= 0.0)


def test_another_seed_changes_arrivals_lengths_and_tiers() -> None:
    first, second = (Workload().generate(seed) for seed in (0, 1))
    assert not np.array_equal(first.arrival, second.arrival)
    assert not np.array_equal(first.prompt, second.prompt)
    assert not np.array_equal(first.output, second.output)
    assert not np.array_equal(first.tier, second.tier)


def test_rate_and_process_do_not_change_lengths_and_tiers() -> None:
    slow = Workload(rate=1.0).generate(3)
    for workload in (Workload(rate=4.0), Workload(arrivals="onoff"), Workload(arrivals="gamma", cv=3.0)):
        other = workload.generate(3)
        assert np.array_equal(other.prompt, slow.prompt)
        assert np.array_equal(other.output, slow.output)
        assert np.array_equal(other.tier, slow.tier)
    assert Workload(rate=4.0).generate(3).arrival * 4.0 == pytest.approx(slow.arrival)


def test_a_generator_as_seed_is_advanced() -> None:
    rng = np.random.default_rng(0)
    first = Workload().generate(rng)
    assert first.digest() == Workload().generate(0).digest()
    assert Workload().generate(rng).digest() != first.digest()


def test_default_tiers_are_five_percent_strict() -> None:
    requests = Workload(num_requests=100_000, lengths="fixed:1,1").generate(0)
    assert (requests.tier == 0).mean() == pytest.approx(0.05, abs=0.003)
    assert requests.tiers == DEFAULT_TIERS


def test_real_lengths_combine_with_synthetic_arrivals() -> None:
    lengths = EmpiricalLengths([100, 200, 300], [10, 20, 30], "mine")
    requests = Workload(num_requests=3, lengths=lengths).generate(0)
    assert sorted(requests.prompt.tolist()) == [100, 200, 300]
    assert np.array_equal(requests.output * 10, requests.prompt)
    assert "mine" in requests.source


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 0.0}, "rate: expected a number > 0, got 0.0"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": "fast"}, "rate"),
        ({"num_requests": 0}, "num_requests: expected a whole number >= 1, got 0"),
        ({"num_requests": 2.5}, "num_requests: expected a whole number"),
        ({"step_s": 300.0}, "step_s: expected less than step_every_s \\(300\\), got 300"),
        ({"step_factor": 0.0}, "step_factor: expected a number > 0"),
        ({"arrivals": "weibull"}, "arrivals: expected one of poisson, gamma, .*got 'weibull'"),
        ({"cv": -1.0}, "cv"),
        ({"gap_cap": -1.0}, "gap_cap: expected a number >= 0"),
        ({"off_mean_s": 0.0}, "off_mean_s"),
        ({"off_factor": 0.0, "on_factor": 0.0}, "one of them above 0"),
        ({"lengths": "nowhere"}, "lengths: expected one of"),
        ({"tiers": (Tier("a", 0.5, 0.1),)}, "sum to 1"),
        ({"arrivals": "toy"}, "expected fixed:PROMPT,OUTPUT for toy"),
    ],
)
def test_workload_fields_are_checked_at_construction(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Workload(**fields)


def test_spec_strings_set_the_fields() -> None:
    parsed = parse_workload("gamma:rate=1.6, cv=2, num_requests=2_000, lengths=fixed:512,8, gap_cap=3")
    assert parsed == Workload(rate=1.6, num_requests=2000, arrivals="gamma", lengths="fixed:512,8", cv=2.0, gap_cap=3.0)
    assert parsed.length_model == FixedLengths(512, 8)
    assert parse_workload("poisson") == Workload()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("weibull:rate=1", "expected one of poisson, gamma, onoff, ramp, step, burst, toy, recorded, closed; got 'we"),
        (
            "poisson:cv=2",
            "key among rate, num_requests, lengths, trace, unservable, max_concurrency, gap_cap; got 'cv=2'",
        ),
        ("poisson:rate", "expected key=value with a key among rate, .*; got 'rate'"),
        ("poisson:rate=1,rate=2", "'rate' twice"),
        ("poisson:rate=fast", "rate: expected a number > 0, got 'fast'"),
        ("poisson:num_requests=1.5", "num_requests: expected a whole number >= 1, got 1.5"),
        ("poisson:rate=-1", "rate: expected a number > 0, got -1"),
    ],
)
def test_bad_specs_say_what_is_known(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_workload(spec)


def test_every_name_has_a_description() -> None:
    assert workload_names() == get_args(ArrivalName)
    assert tuple(workload_descriptions()) == workload_names()
    assert set(length_descriptions()) == {*table_names(), *LENGTH_FORMS}
    for name in DRAWN:
        assert parse_workload(name).description


def test_every_field_says_what_it_means_and_every_key_is_a_field() -> None:
    fields = {field.name for field in dataclasses.fields(Workload)}
    for text in workload_descriptions().values():
        keys = text.partition("(keys: ")[2].rstrip(")").split(", ")
        assert set(keys) <= fields
