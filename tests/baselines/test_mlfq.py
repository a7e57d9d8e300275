"""The multi-level feedback queue and the priority batches under it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines.families.priority import RANKED, RANKING, Ranks, sort_listed
from baselines.mlfq import MLFQ
from engine.compiled.records import cells_of, record, records
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.errors import InputError
from engine.runs.record import Record
from engine.runs.simulate import simulate
from tests.toys import constant

SECOND = constant(1.0)


def run(policy: MLFQ, requests: Requests, config: EngineConfig | None = None) -> Record:
    """A run with its step log, one second for each iteration."""
    return simulate(policy, requests, SECOND, config, log_steps=True)


def batches(record: Record) -> list[dict[int, int]]:
    """Tokens by request, in order, for each iteration."""
    assert record.steps is not None
    return [{int(i): int(n) for i, n, _ in batch} for batch in record.steps.batches]


def test_a_newcomer_goes_before_requests_that_had_their_quantum() -> None:
    """Quantum 2 s, 1 s each iteration, one token each: the second request overtakes once the first is demoted."""
    requests = Requests.create([0.0, 2.5], [1, 1], [5, 3])
    served = [next(iter(b)) for b in batches(run(MLFQ(token_budget=1, quantum_s=2.0), requests))]
    assert served == [0, 0, 0, 1, 1, 0, 0, 1]


def test_without_demotion_it_is_first_come_first_served() -> None:
    requests = Requests.create([0.0, 2.5], [1, 1], [5, 3])
    served = [next(iter(b)) for b in batches(run(MLFQ(token_budget=1, levels=1), requests))]
    assert served == [0] * 5 + [1] * 3


def test_waiting_long_brings_a_request_back_to_the_top() -> None:
    """A long request, demoted, meets a stream of short ones; promotion serves it before the stream ends."""
    requests = Requests.create([0.0, *np.arange(1.0, 13.0)], [1] * 13, [9] + [1] * 12)
    never = run(MLFQ(token_budget=1, quantum_s=1.0), requests)
    after = run(MLFQ(token_budget=1, quantum_s=1.0, promote_after_s=3.0), requests)
    second = [[k for k, b in enumerate(batches(r)) if 0 in b][1] for r in (never, after)]
    assert second[1] < 6 < 12 < second[0]


def test_the_batch_shares_one_token_budget() -> None:
    record = run(MLFQ(token_budget=8), Requests.create([0.0] * 3, [5, 5, 5], [4, 4, 4]))
    assert batches(record)[0] == {0: 5, 1: 3}
    assert all(sum(b.values()) <= 8 for b in batches(record))


def test_a_decode_without_a_block_takes_that_of_the_last_in_the_list() -> None:
    config = EngineConfig(block_size=4, num_blocks=4, watermark=0.0, max_model_len=16)
    record = run(MLFQ(levels=1), Requests.create([0.0, 0.0], [4, 8], [8, 4]), config)
    assert record.steps is not None
    assert next(e for evicted in record.steps.evicted for e in evicted) == 1
    assert int(record.row["finished"][0]) == 2


def test_newcomers_evict_nobody_and_do_not_stop_who_runs() -> None:
    """Request 1 is on a higher level than the demoted request 0 and finds no room: request 0 goes on."""
    config = EngineConfig(block_size=4, num_blocks=4, watermark=0.0, max_model_len=16)
    record = run(MLFQ(quantum_s=1.0), Requests.create([0.0, 1.5], [8, 12], [6, 2]), config)
    assert int(record.row["evictions"][0]) == 0
    assert [next(iter(b)) for b in batches(record)] == [0] * 6 + [1] * 2


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_the_list_is_sorted_by_key_and_then_arrival(keys: list[int], shuffle: object) -> None:
    ids = list(range(len(keys)))
    shuffle.shuffle(ids)  # type: ignore[attr-defined]
    requests = records(RANKED)(np.zeros((len(keys), cells_of(RANKED))))
    ranks = Ranks(record(RANKING)(np.zeros(cells_of(RANKING))), requests)
    ranks.row.listed = len(keys)
    requests.member.listed, requests.heap.key, requests.heap.tie = ids, keys, range(len(keys))
    sort_listed(ranks)
    assert requests.member.listed.tolist() == sorted(range(len(keys)), key=lambda i: (keys[i], i))


@pytest.mark.parametrize(
    ("name", "value"),
    [("token_budget", 0), ("quantum_s", 0.0), ("factor", 0.5), ("levels", 0), ("promote_after_s", -1.0)],
)
def test_parameters_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        MLFQ(**{name: value})  # type: ignore[arg-type]
