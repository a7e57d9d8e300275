"""Closed loops: a limit on requests in flight, and users who think; against hand calculation and queueing theory."""

import math
import pickle
from typing import Any

import numpy as np
import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.closed import Loop, soonest
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.workload import Workload, parse_workload
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.runs.metrics import summarize
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.server.state import DROPPED, FINISHED, FUTURE
from tests.toys import constant

SECOND = constant(1.0)
SARATHI = baselines.Sarathi()
ONE_AT_A_TIME = EngineConfig(max_num_seqs=1)


def users(places: int, think: list[float], prompt: list[int], output: list[int], **further: Any) -> Requests:
    loop = Loop(places, np.array(think))
    return Requests.create(soonest(loop), prompt, output, loop=loop, **further)


def check_loop(record: Record) -> None:
    """Never more in flight than places; every arrival is a departure and what its request waits for then."""
    requests = record.requests
    loop, n = requests.loop, len(requests)
    assert loop is not None
    arrival, left = record.request["arrival"], np.sort(record.ledger["completed"])
    assert (np.diff(arrival) >= 0.0).all()
    assert set(record.request["status"]) <= {FINISHED, DROPPED}
    in_flight = np.arange(1, n + 1) - np.searchsorted(left, arrival, side="right")
    assert in_flight.max() <= loop.places
    free = left[: max(0, n - loop.places)]
    if loop.think is None:
        expected = np.concatenate([requests.arrival[: loop.places], np.maximum(requests.arrival[loop.places :], free)])
        assert arrival.tolist() == expected.tolist()
    else:
        expected = np.concatenate([loop.think[: loop.places], free + loop.think[loop.places :]])
        assert arrival.tolist() == np.sort(expected).tolist()


def test_a_limit_sends_a_request_when_it_is_due_and_a_place_is_free() -> None:
    """Prompt, then one decode: 2 s each. Five are due at 0 with 2 places: sent at 0, 0, 2, 2, 4; the last at 10."""
    requests = Requests.create([0.0] * 5 + [10.0], [4] * 6, [2] * 6).limited(2)
    record = simulate(SARATHI, requests, SECOND)
    assert record.request["arrival"].tolist() == [0.0, 0.0, 2.0, 2.0, 4.0, 10.0]
    assert record.ledger["completed"].tolist() == [2.0, 2.0, 4.0, 4.0, 6.0, 12.0]
    check_loop(record)
    report = summarize(record)
    assert report.ttft.max == 1.0  # what it waited at the client does not count
    assert report.max_concurrent_requests == 2


def test_a_place_that_was_free_before_is_taken_when_the_request_is_due() -> None:
    """Request 1, due at 1.5 s in the middle of an iteration, is sent then: only request 0 is in flight."""
    record = simulate(SARATHI, Requests.create([0.0, 1.5], [4, 4], [5, 1]).limited(2), SECOND)
    assert record.request["arrival"].tolist() == [0.0, 1.5]


def test_a_dropped_request_leaves_its_place() -> None:
    """The policy vllm drops the 9-token prompt at 0 s, so that the third is sent then."""
    requests = Requests.create([0.0, 0.0, 0.0], [4, 9, 4], [3, 1, 1]).limited(2)
    record = simulate(baselines.make("vllm:max_batched_tokens=8"), requests, SECOND)
    assert record.request["status"].tolist() == [FINISHED, DROPPED, FINISHED]
    assert record.request["arrival"].tolist() == [0.0, 0.0, 0.0]
    check_loop(record)


def test_users_think_before_each_request() -> None:
    """Two users think 1 and 3 s; each request takes 2 s; then the think times 5 and 0 s are those of who leaves first.

    Request 0 comes at 1 s and leaves at 3 s; its user thinks 5 s. Request 1 comes at 3 s and leaves at 5 s; 0 s of
    thought: request 2 comes at 5 s. The user who is back at 8 s sends request 3.
    """
    record = simulate(SARATHI, users(2, [1.0, 3.0, 5.0, 0.0], [4] * 4, [2] * 4), SECOND)
    assert record.request["arrival"].tolist() == [1.0, 3.0, 5.0, 8.0]
    assert record.ledger["completed"].tolist() == [3.0, 5.0, 7.0, 10.0]
    check_loop(record)


def test_one_user_never_queues() -> None:
    requests = Workload(arrivals="closed", concurrency=1, think="exp:1", num_requests=50).generate(3)
    record = simulate(SARATHI, requests, load_profile("rtx6000ada-mistral-7b"))
    assert (record.ledger["first_scheduled"] == record.request["arrival"]).all()
    assert requests.loop is not None
    assert requests.loop.think is not None
    assert np.array_equal(record.request["arrival"][1:], record.ledger["completed"][:-1] + requests.loop.think[1:])
    assert summarize(record).max_concurrent_requests == 1


@pytest.mark.parametrize(("places", "rate"), [(1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)])
def test_a_cycle_of_fixed_times_has_the_smaller_of_two_rates(places: int, rate: float) -> None:
    """Service 1 s, one at a time, think 3 s: places / (3 + 1) requests per second, at most 1."""
    n = 400
    requests = Workload(
        arrivals="closed", concurrency=places, think="fixed:3", num_requests=n, lengths="fixed:4,1"
    ).generate(0)
    record = simulate(SARATHI, requests, SECOND, ONE_AT_A_TIME)
    check_loop(record)
    assert summarize(record).request_throughput == pytest.approx(rate, rel=0.02)


def test_throughput_is_that_of_the_machine_repairman() -> None:
    """M/M/1//5: exponential service (mean 1 s in steps of 10 ms) and thought (4 s): (1 - p0) / service within 2 %."""
    n, places, think = 20_000, 5, 4.0
    rng = np.random.default_rng(5)
    output = np.ceil(100.0 * rng.standard_exponential(n)).astype(np.int64)
    requests = users(places, (think * rng.standard_exponential(n)).tolist(), [1] * n, output.tolist())
    record = simulate(SARATHI, requests, constant(0.01), ONE_AT_A_TIME)
    service = 0.01 * float(output.mean())
    weight = [math.perm(places, k) * (service / think) ** k for k in range(places + 1)]
    throughput = (1.0 - 1.0 / sum(weight)) / service
    report = summarize(record)
    assert report.request_throughput == pytest.approx(throughput, rel=0.02)
    # Response time by Little's law: N = X (R + Z).
    assert report.e2el.mean == pytest.approx(places / throughput - think, rel=0.04)


SPECS = [*baselines.names(), "alise:age_s=0.5", "ltr:starvation_threshold=20", "sarathi:order=spf"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("process", ["closed:concurrency=12,think=exp:1", "poisson:rate=20,max_concurrency=12"])
def test_every_policy_meets_the_same_loop_and_serves_everybody_once(spec: str, process: str) -> None:
    policy = baselines.make(spec)
    requests = parse_workload(f"{process},num_requests=80,lengths=lognormal:5,1,3,1").generate(1)
    if policy.channel:
        requests = predict(requests, policy.channel, 1)
    config = EngineConfig(num_blocks=400, max_model_len=4096)
    record = simulate(policy, requests, load_profile("rtx6000ada-mistral-7b"), config)
    check_loop(record)
    assert int(record.row["finished"][0]) == 80
    stepped = simulate(policy, requests, load_profile("rtx6000ada-mistral-7b"), config, log_steps=True)
    assert stepped.request.tobytes() == record.request.tobytes()


def test_a_limit_that_nobody_reaches_changes_nothing() -> None:
    requests = Workload(num_requests=60).generate(2)
    model = load_profile("rtx6000ada-mistral-7b")
    free, loose = (simulate(SARATHI, r, model) for r in (requests, requests.limited(60)))
    assert free.request.tobytes() == loose.request.tobytes()
    assert free.ledger.tobytes() == loose.ledger.tobytes()


def test_more_users_than_requests_and_no_thought_are_a_burst() -> None:
    requests = users(10, [0.0] * 4, [4] * 4, [2] * 4)
    record = simulate(SARATHI, requests, SECOND)
    burst = simulate(SARATHI, Requests.create([0.0] * 4, [4] * 4, [2] * 4), SECOND)
    assert record.request.tobytes() == burst.request.tobytes()


def test_at_the_horizon_who_is_not_released_has_not_arrived() -> None:
    record = simulate(SARATHI, users(1, [0.0, 1.0, 1.0], [4] * 3, [2] * 3), SECOND, horizon_s=3.5)
    assert record.request["status"].tolist()[2] == FUTURE
    report = summarize(record)
    assert (report.arrived, report.completed) == (2, 1)
    assert math.isfinite(report.ttft.max)


def test_a_warm_up_counts_by_the_times_that_came_out() -> None:
    record = simulate(SARATHI, users(1, [0.0, 1.0, 1.0], [4] * 3, [2] * 3), SECOND)
    assert record.request["arrival"].tolist() == [0.0, 3.0, 6.0]
    assert summarize(record, warmup_s=2.0).arrived == 2


def test_think_times_and_limits_are_in_the_digest_the_pickle_and_the_head() -> None:
    one = Workload(arrivals="closed", concurrency=3, num_requests=9).generate(0)
    copy = pickle.loads(pickle.dumps(one))
    assert copy.digest() == one.digest()
    assert one.loop is not None
    assert one.digest() != one.replace(loop=Loop(4, one.loop.think)).digest()
    assert one.digest() != one.replace(loop=Loop(3)).digest() != one.replace(loop=None).digest()
    head = one.head(4)
    assert head.loop is not None
    assert head.loop.think is not None
    assert head.loop.think.tolist() == one.loop.think[:4].tolist()  # type: ignore[index]
    assert "closed loop, 3 users, think exponential, mean 2 s" in one.source


def test_lengths_and_tiers_are_those_of_the_open_process() -> None:
    shut, free = (Workload(arrivals=name, num_requests=20).generate(4) for name in ("closed", "poisson"))
    assert shut.prompt.tolist() == free.prompt.tolist()
    assert shut.tier.tolist() == free.tier.tolist()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("closed:concurrency=0", "concurrency"),
        ("closed:think=2", "think: expected exp:SECONDS"),
        ("closed:think=exp:-1", "think"),
        ("closed:think=exp:nan", "think"),
        ("closed:max_concurrency=3", "expected key=value with a key among"),
        ("poisson:max_concurrency=-1", "max_concurrency"),
        ("poisson:think=exp:1", "expected key=value with a key among"),
    ],
)
def test_bad_loops_are_refused_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_workload(spec).generate(0)
    assert "\n" not in str(caught.value)


def test_a_closed_loop_cannot_be_limited_again() -> None:
    one = Workload(arrivals="closed", concurrency=3, num_requests=9).generate(0)
    with pytest.raises(InputError, match="max_concurrency: expected requests of an open loop"):
        one.limited(2)
    with pytest.raises(InputError, match="expected a whole number >= 1"):
        one.replace(loop=None).limited(-1)
    with pytest.raises(InputError, match=r"think\[1\]"):
        Requests.create([0.0, 0.0], [1, 1], [1, 1], loop=Loop(1, np.array([0.0, np.inf])))
