"""WAIT and Nested WAIT: who waits for a quota, who enters, and that nobody waits for ever."""

import numpy as np
import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.errors import InputError
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from tests.toys import constant, tokens_of

SECOND = constant(1.0)


def known(arrivals: list[float], prompts: list[int], outputs: list[int]) -> Requests:
    """Requests with true predictions."""
    return Requests.create(arrivals, prompts, outputs, prediction=outputs)


def run(spec: str, requests: Requests, config: EngineConfig | None = None) -> tuple[Record, StepLog]:
    """A run of one second per iteration, and its steps."""
    record = simulate(baselines.make(spec), requests, SECOND, config, log_steps=True)
    assert record.steps is not None
    return record, record.steps


def test_a_type_waits_for_its_quota_and_runs_at_once_when_it_is_there() -> None:
    record, log = run("wait:types=inf:2,variant=paper,timeout_s=50", known([0.0, 7.0], [3, 4], [2, 2]))
    assert tokens_of(log)[0] == {0: 3, 1: 4}
    assert record.ledger["first_token"].tolist() == [8.0, 8.0]


def test_after_the_timeout_it_runs_with_what_it_has() -> None:
    record, _ = run("wait:types=inf:2,variant=paper,timeout_s=5", known([1.0], [3], [1]))
    assert record.ledger["first_token"].tolist() == [7.0]


def test_in_the_paper_decodes_of_a_type_without_quota_wait_in_the_code_they_run_with_any_batch() -> None:
    """Requests 0 and 1 are of the first type; from 2 s on only the second type has newcomers."""
    requests = known([0.0, 0.0, 1.0, 2.0], [3, 3, 3, 3], [2, 2, 9, 9])
    _, log = run("wait:types=4:2;inf:1,variant=paper,timeout_s=30", requests)
    assert tokens_of(log)[:3] == [{0: 3, 1: 3}, {2: 3}, {2: 1, 3: 3}]
    _, log = run("wait:types=4:2;inf:1,variant=code,timeout_s=30", requests)
    assert tokens_of(log)[:3] == [{0: 3, 1: 3}, {0: 1, 1: 1, 2: 3}, {2: 1, 3: 3}]


def test_no_more_than_the_quota_enter_at_a_time_and_in_the_code_no_more_than_fit_the_stages() -> None:
    requests = known([0.0] * 5, [3] * 5, [1] * 5)
    _, log = run("wait:types=inf:2,timeout_s=1", requests)
    assert [len(batch) for batch in tokens_of(log)] == [2, 2, 1]
    requests = known([0.0] * 6, [3] * 6, [9] * 6)
    _, log = run("wait:types=1:1;inf:1", requests)
    _, capped = run("wait:types=2:1", requests)
    assert max(len(batch) for batch in tokens_of(log)) == 6
    assert max(len(batch) for batch in tokens_of(capped)) == 3


def test_without_waiting_a_quota_only_limits_who_enters() -> None:
    record, log = run("wait:types=inf:2,wait=false,variant=paper", known([0.0, 0.0, 0.0], [3, 3, 3], [3, 3, 3]))
    assert tokens_of(log)[:2] == [{0: 3, 1: 3}, {0: 1, 1: 1, 2: 3}]
    assert record.ledger["first_token"].tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_idle_time_falls_with_the_quota(variant: str) -> None:
    """Cross-check 6 of the specification; at 1 per stage it is continuous batching and hardly ever waits."""
    requests = Workload(rate=0.5, num_requests=200, lengths="lognormal:3,0.5,2,0.3,64").generate(3)
    requests = requests.replace(prediction=requests.output)
    idle = []
    for quota in (8, 4, 2, 1):
        record, log = run(f"wait:types=inf:{quota},variant={variant},timeout_s=1000", requests)
        idle.append(float(record.row["now"][0] - log.duration_s.sum()))
    assert idle == sorted(idle, reverse=True)
    assert idle[0] > 1.2 * idle[-1]


def completions(spec: str, first: int) -> list[int]:
    """Requests finished by each iteration: 1 unit of KV for the prompt, 2 with the one decode, room for 12 units.

    `first` requests are there at once, 400 more in the second iteration. Eviction takes the token, too.
    """
    requests = known([0.0] * first + [0.5] * 400, [1] * (first + 400), [2] * (first + 400))
    config = EngineConfig(block_size=1, num_blocks=12, watermark=0.0, max_model_len=12, eviction_keeps_output=False)
    record, log = run(spec, requests, config)
    ends = np.cumsum(log.duration_s) + (record.row["now"][0] - log.duration_s.sum())
    return [int((record.ledger["completed"] == end).sum()) for end in ends]


def test_a_quota_of_four_keeps_the_state_that_first_come_first_served_loses() -> None:
    """Unit test of specs 12: FCFS keeps 4 new beside 4 decodes, but 6 beside 3 end in a cycle of at most 3 in the mean.

    The specification's cycle is 0, 6, 0, 6; here an evicted request has its lost token to prefill again, which costs
    KV, so that still fewer finish.
    """
    assert completions("sarathi", 4)[1:60] == [4] * 59
    lost = completions("sarathi", 3)[1:60]
    assert lost[:4] == [3, 6, 0, 6]
    assert np.mean(lost[4:]) <= 3.0
    assert completions("wait:types=inf:4", 3)[1:60] == [4] * 59


def test_segments_wait_at_their_boundaries_with_their_kv() -> None:
    """Both requests have two tokens at 2 s, but the second segment takes in two at a time."""
    requests = Requests.create([0.0, 3.0], [3, 3], [4, 4])
    _, log = run("nested_wait:segments=2:1;inf:2,variant=paper,timeout_s=100", requests)
    assert tokens_of(log)[0] == {0: 3}
    served = tokens_of(log)
    first_third_token = next(k for k, batch in enumerate(served) if sum(b.get(0, 0) == 1 for b in served[: k + 1]) == 2)
    assert served[first_third_token].keys() == {0, 1}
    assert log.evicted == [[]] * len(served)


def test_the_first_segment_needs_no_quota_in_the_code_but_in_the_paper() -> None:
    requests = Requests.create([0.0], [3], [1])
    assert run("nested_wait:segments=inf:2", requests)[0].ledger["first_token"].tolist() == [1.0]
    assert run("nested_wait:segments=inf:2,variant=paper", requests)[0].ledger["first_token"].tolist() == [2.0]


@pytest.mark.parametrize(
    "spec",
    [
        "wait",
        "wait:variant=paper",
        "wait:wait=false",
        "nested_wait",
        "nested_wait:variant=paper",
        "nested_wait:wait=false",
    ],
)
def test_under_memory_pressure_everybody_is_served(spec: str) -> None:
    requests = Workload(rate=15.0, num_requests=120, lengths="lognormal:5,0.7,4.5,0.7,1024").generate(5)
    requests = requests.replace(prediction=requests.output)
    record = simulate(baselines.make(spec), requests, constant(0.02), EngineConfig(num_blocks=100, max_model_len=1024))
    assert (record.ledger["delivered"] == requests.output).all()
    assert np.isfinite(record.row["now"][0])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wait:types=10", "policy 'wait': types: expected tokens:requests;tokens:requests, got '10'"),
        ("wait:types=10:1;5:1", "policy 'wait': types: expected rising token counts > 0, got '10:1;5:1'"),
        ("wait:types=10:0", "policy 'wait': types: expected requests > 0, got 0"),
        ("wait:variant=best", "policy 'wait': variant: expected paper or code, got 'best'"),
        ("wait:timeout_s=0", "policy 'wait': timeout_s: expected seconds > 0, got 0.0"),
        ("nested_wait:segments=a:b", "policy 'nested_wait': segments: expected tokens > 0, got 'a'"),
        ("nested_wait:timeout_s=inf", "policy 'nested_wait': timeout_s: expected a number, got 'inf'"),
    ],
)
def test_settings_are_checked(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        baselines.make(spec)
