"""Scenarios and suites: what their texts and files mean, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from baselines import make
from engine.config import EngineConfig
from engine.demand.workload import Workload
from engine.device.bounds import capacity_bound, least_seconds
from engine.device.latency import load_profile
from engine.device.memory import server_of
from engine.errors import InputError
from engine.runs.serve import Deployment
from engine.runs.simulate import simulate
from engine.scenarios.scenario import Scenario, read_scenario
from engine.scenarios.suite import load_suite, read_scenarios, suite_names

H100 = "h100-mistral-7b"
EVALUATED = ("devices", "heldout", "overload")


def test_a_text_says_requests_device_and_server() -> None:
    found = read_scenario(f"gamma:cv=2,load=0.8,lengths=fixed:512,64@{H100}:speed=2@num_blocks=4x,max_num_seqs=256")
    assert (found.workload, found.load) == ("gamma:cv=2,lengths=fixed:512,64", 0.8)
    own = server_of(load_profile(H100))
    assert found.engine == own.replace(num_blocks=4 * own.num_blocks, max_num_seqs=256)
    assert found.model == load_profile(f"{H100}:speed=2")
    assert read_scenario(found.name) == found
    assert read_scenario(found.to_dict()) == found


def test_the_default_is_the_default_device_and_workload() -> None:
    found = read_scenario("poisson")
    assert found == Scenario()
    assert found.text == "poisson"
    assert found.engine == server_of(load_profile("rtx6000ada-mistral-7b"))
    assert found.requests(7).num_requests == 7


def test_a_load_is_a_share_of_the_bound_or_of_a_stated_capacity() -> None:
    half = read_scenario(f"poisson:load=0.5@{H100}")
    requests = half.requests(2000).generate(0)
    bound = capacity_bound(least_seconds(half.model, half.engine, requests))
    assert bound is not None
    assert half.rate == pytest.approx(0.5 * bound, rel=1e-12)
    assert half.requests(10).rate == half.rate
    stated = read_scenario({"workload": "poisson", "load": 0.5, "capacity": 3.0})
    assert stated.rate == 1.5


def test_a_faster_device_has_a_higher_rate_at_the_same_load() -> None:
    slow, fast = read_scenario(f"poisson:load=0.5@{H100}"), read_scenario(f"poisson:load=0.5@{H100}:speed=2")
    assert fast.rate == pytest.approx(2.0 * slow.rate)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "scenario: expected WORKLOAD"),
        (3, "scenario: expected WORKLOAD"),
        ("a@b@c@d", "scenario: expected WORKLOAD"),
        ("nope", "workload: expected one of poisson"),
        ("poisson@no-such-card", "profile: expected one of"),
        ("poisson:load=0", "load: expected a number > 0"),
        ("poisson:load=x", "load: expected a number"),
        ("poisson:load=0.5,rate=2", "expected a rate or a load"),
        ("closed:load=0.5", "expected arrivals with a rate"),
        ("poisson:num_requests=5", "num_requests: expected none"),
        ("poisson@@max_num_seqs=0", "max_num_seqs: expected a whole number >= 1"),
        ("poisson@@seats=5", "expected key=value with a key among block_size"),
        ("poisson@@num_blocks=0x", "num_blocks: expected a number > 0"),
        ("poisson@@watermark=2x", "watermark: expected"),
        ({"workload": "poisson", "capacity": 2.0}, "expected a load that is a share of it"),
        ({"workload": "poisson:load=0.5", "load": 0.5}, "load: expected once"),
        ({"workload": "poisson", "seats": 5}, "unknown key 'seats'"),
        ({"workload": "poisson", "tiers": ["name=a"]}, "expected tbt="),
    ],
)
def test_what_does_not_fit_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_scenario(given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", suite_names())
def test_every_shipped_suite_can_be_served(name: str) -> None:
    suite = load_suite(name)
    assert suite.about
    for one in suite.scenarios:
        assert one.capacity or not one.load, "a share of the bound would move with the bound"
        one.requests(50).generate(0).check_servable(one.engine)


def test_training_shares_no_world_and_no_changed_device_with_what_is_judged() -> None:
    training = load_suite("training").scenarios
    devices = {one.profile for one in training} - {"rtx6000ada-mistral-7b"}
    judged = [one for name in EVALUATED for one in load_suite(name).scenarios]
    assert not devices & {one.profile for one in judged}
    assert not {(one.workload, one.profile, one.server, one.tiers, one.rate) for one in training} & {
        (one.workload, one.profile, one.server, one.tiers, one.rate)
        for one in judged
        if (one.profile, one.workload) != ("rtx6000ada-mistral-7b", "poisson:rate=2")
    }
    assert not any(word in one.workload + one.profile for one in training for word in ("azure", "h200", "separate"))


def test_lists_of_rates_and_loads_are_several_scenarios(tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text(
        "about: mine\nseeds: 2\nrequests: 30\nscenarios:\n"
        "  - poisson:rate=1.5\n"
        f"  - {{name: big, profile: {H100}, loads: [0.5, 0.75], capacity: 8}}\n"
        "  - {workload: 'gamma:cv=2', rates: [1, 2.5]}\n"
    )
    suite = load_suite(str(file))
    rates = {one.name: one.rate for one in suite.scenarios}
    expected = {"big 0.5": 4.0, "big 0.75": 6.0, "gamma:cv=2,rate=1": 1.0, "gamma:cv=2,rate=2.5": 2.5}
    assert rates == {"poisson:rate=1.5": 1.5} | expected
    assert (suite.seeds, suite.requests) == (2, 30)
    assert read_scenarios(str(file)) == suite.scenarios


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a mapping with a list of scenarios"),
        ("scenarios: 3", "expected a mapping with a list of scenarios"),
        ("scenarios: []", "scenarios: expected at least one"),
        ("scenarios: [poisson, poisson]", "expected each name once, got 'poisson' twice"),
        ("scenarios: [{rates: [1], loads: [1]}]", "scenarios[0]: expected a list of rates or a list of loads"),
        ("scenarios: [{rates: 1}]", "scenarios[0]: expected a list of rates or a list of loads"),
        ("scenarios: [{rates: [x]}]", "scenarios[0]: rates: expected a number"),
        ("scenarios: [poisson]\nseeds: 0", "seeds: expected a whole number"),
        ("scenarios: [poisson]\nworlds: 0", "unknown key 'worlds'"),
    ],
)
def test_a_file_that_holds_no_suite_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load_suite(str(file))
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_suite_that_is_not_there_is_one_line_with_those_that_are() -> None:
    with pytest.raises(
        InputError, match=r"^suite: expected one of default, devices, heldout, overload, referee, training or"
    ):
        load_suite("nothing")


def test_a_simulated_server_has_the_memory_of_its_device() -> None:
    requests, policy = Workload(num_requests=20).generate(0), make("sarathi")
    for name in (H100, "rtx6000ada-mistral-7b"):
        model = load_profile(name)
        assert simulate(policy, requests, model).config == server_of(model)
        assert Deployment(executor=model).config == server_of(model)
    assert simulate(policy, requests, model, EngineConfig(num_blocks=777)).config.num_blocks == 777
