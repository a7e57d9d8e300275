"""vLLM V1: one budget, running first, nothing admitted beside an eviction."""

import numpy as np
import pytest

from baselines.vllm_v1 import VLLMV1
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.errors import InputError
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from engine.server.core import arrive, empty
from engine.server.state import DROP, load, new_server
from tests.toys import burst, constant, planned

SECOND = constant(1.0)
SMALL = EngineConfig(block_size=4, num_blocks=4, watermark=0.0, max_model_len=16)


def steps(policy: VLLMV1, requests: Requests, config: EngineConfig | None = None) -> StepLog:
    """The step log of a run that serves everybody."""
    record = simulate(policy, requests, SECOND, config, log_steps=True)
    assert int(record.row["finished"][0]) == len(requests)
    assert record.steps is not None
    return record.steps


def tokens(log: StepLog) -> list[dict[int, int]]:
    """Tokens by request, in order, for each iteration."""
    return [{int(i): int(n) for i, n, _ in batch} for batch in log.batches]


def test_decodes_and_chunks_share_one_budget_running_first() -> None:
    assert tokens(steps(VLLMV1(token_budget=8), burst([5, 10], [3, 1])))[:3] == [{0: 5, 1: 3}, {0: 1, 1: 7}, {0: 1}]


def test_the_budget_is_at_most_what_the_server_can_process() -> None:
    config = EngineConfig(max_batched_tokens=3)
    assert tokens(steps(VLLMV1(token_budget=8), burst([5], [1]), config)) == [{0: 3}, {0: 2}]


def test_decodes_beyond_the_budget_starve_the_youngest() -> None:
    # Each chunk fills the budget until three hold KV; from then on there are three decodes for two tokens.
    requests = Requests.create([0.0, 0.0, 1.0], [1, 1, 1], [2, 8, 8])
    batches = tokens(steps(VLLMV1(token_budget=2), requests))
    assert batches[:4] == [{0: 1, 1: 1}, {0: 1, 1: 1}, {1: 1, 2: 1}, {1: 1, 2: 1}]
    tight = tokens(steps(VLLMV1(token_budget=1), burst([1, 1], [4, 4])))
    assert tight == [{0: 1}] * 4 + [{1: 1}] * 4


def test_a_long_prompt_gets_no_more_than_the_threshold() -> None:
    policy = VLLMV1(token_budget=100, long_prefill_token_threshold=4)
    assert tokens(steps(policy, burst([10, 3], [1, 1]))) == [{0: 4, 1: 3}, {0: 4}, {0: 2}]


def test_the_head_of_the_queue_blocks_those_behind_it() -> None:
    """Request 1 needs three blocks where two are free; request 2 would fit."""
    assert list(tokens(steps(VLLMV1(), burst([8, 12, 4], [3, 1, 1]), SMALL))[0]) == [0]


@pytest.mark.parametrize(("cap", "server_cap"), [(2, 9), (9, 2)])
def test_the_smaller_cap_limits_who_holds_kv(cap: int, server_cap: int) -> None:
    log = steps(VLLMV1(batch_cap=cap), burst([4] * 5, [3] * 5), EngineConfig(max_num_seqs=server_cap))
    assert max(len(batch) for batch in log.batches) == 2


def test_admission_keeps_no_watermark() -> None:
    config = SMALL.replace(watermark=0.5)
    assert tokens(steps(VLLMV1(), burst([4] * 4, [1] * 4), config)) == [dict.fromkeys(range(4), 4)]


def test_a_prompt_beyond_the_model_length_is_dropped_and_does_not_block() -> None:
    requests = burst([17, 4], [1, 1])
    server = new_server(2, 1)
    load(server, SMALL, requests)
    arrive(server)
    empty(server)
    policy = VLLMV1()
    policy.plan(server.visible, policy.memory(SMALL, 2), server.plan)
    assert planned(server.plan) == [(0, DROP), (1, 4)]


def test_an_eviction_takes_the_last_and_admits_nobody() -> None:
    """Two prompts of two blocks fill the memory; the first decode evicts request 1, and request 2 would fit then."""
    log = steps(VLLMV1(), burst([8, 8, 4], [4, 4, 1]), SMALL)
    assert log.evicted[:2] == [[], [1]]
    assert tokens(log)[:2] == [{0: 8, 1: 8}, {0: 1}]


def test_a_decode_takes_a_block_only_when_its_last_one_is_full() -> None:
    log = steps(VLLMV1(), burst([7, 7], [4, 4]), SMALL)
    assert log.evicted[:3] == [[], [], [1]]
    assert tokens(log)[:3] == [{0: 7, 1: 7}, {0: 1, 1: 1}, {0: 1}]


def test_the_last_one_without_a_block_evicts_itself() -> None:
    log = steps(VLLMV1(), burst([4, 4], [3, 3]), SMALL.replace(num_blocks=3))
    assert log.evicted[:2] == [[], [1]]
    assert tokens(log)[:2] == [{0: 4, 1: 4}, {0: 1}]


def test_under_pressure_everybody_is_served_and_no_work_is_lost_or_made_up() -> None:
    requests = Workload(rate=15.0, num_requests=120, lengths="lognormal:5,0.7,4.5,0.7,1024").generate(5)
    config = EngineConfig(num_blocks=200, max_model_len=1024)
    record = simulate(VLLMV1(token_budget=48), requests, constant(0.02), config, log_steps=True)
    assert record.steps is not None
    row, log = record.row[0], record.steps
    assert row.finished == len(requests)
    assert (record.ledger["delivered"] == requests.output).all()
    assert row.evictions > 20
    work = sum(int(batch[:, 1].sum()) for batch in log.batches)
    assert work == int((requests.prompt + requests.output - 1).sum()) + row.recomputed_tokens
    assert max(int(batch[:, 1].sum()) for batch in log.batches) == 48
    starved = np.array([len(batch) for batch in log.batches[1:]]) < log.running[:-1]
    assert starved.any(), "some that hold KV get nothing"


@pytest.mark.parametrize("name", ["token_budget", "batch_cap", "long_prefill_token_threshold"])
def test_parameters_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        VLLMV1(**{name: -1})
