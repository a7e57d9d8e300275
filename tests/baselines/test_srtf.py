"""SRTF and the batches by priority that it shares with LTR, ALISE and MLFQ: order, room for newcomers, swapping."""

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
from engine.server.state import FINISHED
from tests.toys import constant, tokens_of

SECOND = constant(1.0)
SMALL = EngineConfig(block_size=4, num_blocks=6, watermark=0.0, max_model_len=24, kv_bytes_per_token=25)
"""Six blocks of 100 bytes."""
SWAPS = SMALL.replace(swap_bandwidth=1000.0, swap_space_gib=1000 / 2**30)


def known(arrivals: list[float], prompts: list[int], outputs: list[int]) -> Requests:
    """Requests with true predictions."""
    return Requests.create(arrivals, prompts, outputs, prediction=outputs)


def run(spec: str, requests: Requests, config: EngineConfig | None = None) -> tuple[Record, StepLog]:
    """A run of one second per iteration, and its steps."""
    record = simulate(baselines.make(spec), requests, SECOND, config, log_steps=True)
    assert record.steps is not None
    return record, record.steps


def test_the_fewest_output_tokens_left_run_and_others_keep_their_kv() -> None:
    """At one request per iteration request 1 takes over at its arrival, request 2 does not: as much is left of 0."""
    requests = known([0.0, 2.0, 5.0], [3, 3, 3], [6, 2, 3])
    record, log = run("srtf:batch_cap=1", requests)
    assert [next(iter(batch)) for batch in tokens_of(log)] == [0, 0, 1, 1, 0, 0, 0, 0, 2, 2, 2]
    assert record.row["evictions"][0] == 0


def test_ties_go_to_the_earlier_arrival() -> None:
    _, log = run("srtf:batch_cap=1", known([0.0, 0.0], [2, 2], [3, 3]))
    assert [next(iter(batch)) for batch in tokens_of(log)] == [0, 0, 0, 1, 1, 1]


def test_tokens_and_requests_of_an_iteration_are_limited() -> None:
    requests = known([0.0] * 3, [5, 5, 5], [3, 2, 1])
    _, log = run("srtf:token_budget=7", requests)
    assert tokens_of(log)[:3] == [{2: 5, 1: 2}, {1: 3, 0: 4}, {1: 1, 0: 1}]
    _, log = run("srtf:batch_cap=2", requests)
    assert [len(batch) for batch in tokens_of(log)] == [2, 2, 1, 1]


def test_without_swapping_a_newcomer_evicts_nobody() -> None:
    requests = known([0.0, 0.0, 1.0], [10, 10, 4], [3, 3, 1])
    record, log = run("srtf:token_budget=30", requests, SMALL)
    assert tokens_of(log) == [{0: 10, 1: 10}, {0: 1, 1: 1}, {0: 1, 1: 1}, {2: 4}]
    assert record.row["evictions"][0] == 0


def test_with_swapping_a_newcomer_pushes_the_last_of_the_list_to_the_host_and_it_comes_back() -> None:
    requests = known([0.0, 0.0, 1.0], [12, 11, 4], [5, 4, 1])
    record, log = run("srtf:token_budget=30", requests, SWAPS)
    assert log.swapped[:3] == [[], [0], []]
    assert tokens_of(log)[1] == {2: 4, 1: 1}
    assert 0 not in tokens_of(log)[2], "its four blocks are not free yet"
    assert record.row["evictions"][0] == 0
    assert (record.request["status"] == FINISHED).all()
    assert record.row["swapped_out"][0] == record.row["swapped_in"][0] == 2 * 3


def test_a_newcomer_that_would_not_fit_anyway_pushes_nobody_out() -> None:
    """Request 2 needs five blocks; the only one behind it in the list holds three, one is free."""
    requests = known([0.0, 0.0, 1.0], [4, 11, 20], [4, 12, 4])
    _, log = run("srtf:token_budget=30", requests, SWAPS)
    assert log.swapped[1] == []
    full = SWAPS.replace(swap_space_gib=100 / 2**30)
    _, log = run("srtf:token_budget=30", known([0.0, 0.0, 1.0], [12, 11, 4], [5, 4, 1]), full)
    assert log.swapped[1] == [], "the host has room for one block, the last of the list has three"


def test_a_newcomer_without_a_seat_pushes_the_last_one_out() -> None:
    requests = known([0.0, 0.0, 1.0], [4, 4, 4], [5, 4, 1])
    _, log = run("srtf", requests, SWAPS.replace(max_num_seqs=2))
    assert log.swapped[:2] == [[], [0]]
    assert tokens_of(log)[1] == {2: 4, 1: 1}


def test_a_decode_without_a_block_takes_that_of_the_last_one_by_swap_or_else_by_eviction() -> None:
    requests = known([0.0, 0.0], [12, 12], [5, 4])
    for config, evicted, swapped in ((SMALL, [0], []), (SWAPS, [], [0])):
        _, log = run("srtf:token_budget=30", requests, config)
        assert (log.evicted[1], log.swapped[1]) == (evicted, swapped)
        assert tokens_of(log)[1] == {1: 1}


@pytest.mark.parametrize("name", ["srtf", "ltr", "alise", "mlfq"])
@pytest.mark.parametrize("bandwidth", [0.0, 1e6])
def test_under_pressure_everybody_is_served_and_swapping_loses_no_work(name: str, bandwidth: float) -> None:
    requests = Workload(rate=15.0, num_requests=120, lengths="lognormal:5,0.7,4.5,0.7,1024").generate(5)
    requests = requests.replace(prediction=requests.output)
    config = EngineConfig(num_blocks=200, max_model_len=1024, swap_bandwidth=bandwidth, kv_bytes_per_token=10)
    record = simulate(baselines.make(name), requests, constant(0.02), config, log_steps=True)
    assert record.steps is not None
    row = record.row[0]
    assert (record.ledger["delivered"] == requests.output).all()
    work = sum(int(batch[:, 1].sum()) for batch in record.steps.batches)
    assert work == int((requests.prompt + requests.output - 1).sum()) + row.recomputed_tokens
    if bandwidth:
        assert row.swaps > 20
        assert row.evictions == row.recomputed_tokens == 0
        assert row.swapped_in == row.swapped_out
        assert row.free_host == config.host_half_blocks
    else:
        assert row.evictions > 0
        assert row.swaps == 0


def test_with_true_predictions_the_mean_completion_time_is_below_first_come_first_served() -> None:
    requests = Workload(rate=1.0, num_requests=200, lengths="lognormal:2,0.1,3,1.0,512").generate(1)
    requests = requests.replace(prediction=requests.output)
    means = {
        name: float(np.mean(simulate(baselines.make(name), requests, constant(0.05)).ledger["completed"]))
        for name in ("srtf:batch_cap=1", "sarathi:token_budget=1")
    }
    assert means["srtf:batch_cap=1"] < 0.8 * means["sarathi:token_budget=1"]


def test_it_needs_predictions_and_says_so() -> None:
    with pytest.raises(InputError, match=r"policy 'srtf': expected requests with predictions"):
        run("srtf", Requests.create([0.0], [4], [2]))


@pytest.mark.parametrize("name", ["srtf", "ltr", "alise"])
@pytest.mark.parametrize("field", ["token_budget", "batch_cap"])
def test_limits_must_be_positive(name: str, field: str) -> None:
    with pytest.raises(InputError, match=rf"policy '{name}': {field}: expected .* >= 1, got 0"):
        baselines.make(f"{name}:{field}=0")
