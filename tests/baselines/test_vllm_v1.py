"""vLLM V1: one budget, running first, nothing admitted beside an eviction."""

from typing import Any

import numpy as np
import pytest

import baselines
from baselines.vllm_v1 import VLLMV1
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.errors import InputError
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from engine.server.core import arrive, begin, empty, finish
from engine.server.state import DROP, Memory, Plan, View, load, new_server
from tests.toys import Observed, burst, constant, planned, steps_of, tokens_of

SECOND = constant(1.0)
SMALL = EngineConfig(block_size=4, num_blocks=4, watermark=0.0, max_model_len=16)


def test_decodes_and_chunks_share_one_budget_running_first() -> None:
    assert tokens_of(steps_of(VLLMV1(max_num_batched_tokens=8), burst([5, 10], [3, 1])))[:3] == [
        {0: 5, 1: 3},
        {0: 1, 1: 7},
        {0: 1},
    ]


def test_the_budget_is_at_most_what_the_server_can_process() -> None:
    config = EngineConfig(max_batched_tokens=3)
    assert tokens_of(steps_of(VLLMV1(max_num_batched_tokens=8), burst([5], [1]), config)) == [{0: 3}, {0: 2}]


def test_decodes_beyond_the_budget_starve_the_youngest() -> None:
    # Each chunk fills the budget until three hold KV; from then on there are three decodes for two tokens.
    requests = Requests.create([0.0, 0.0, 1.0], [1, 1, 1], [2, 8, 8])
    batches = tokens_of(steps_of(VLLMV1(max_num_batched_tokens=2), requests))
    assert batches[:4] == [{0: 1, 1: 1}, {0: 1, 1: 1}, {1: 1, 2: 1}, {1: 1, 2: 1}]
    tight = tokens_of(steps_of(VLLMV1(max_num_batched_tokens=1), burst([1, 1], [4, 4])))
    assert tight == [{0: 1}] * 4 + [{1: 1}] * 4


@pytest.mark.parametrize(("version", "alone"), [("0.30", [{0: 4}, {0: 2}]), ("0.31", [{0: 6}])])
def test_a_long_prompt_gets_no_more_than_the_threshold_unless_it_is_alone(
    version: str, alone: list[dict[int, int]]
) -> None:
    policy = VLLMV1(max_num_batched_tokens=100, long_prefill_token_threshold=4, version=version)
    assert tokens_of(steps_of(policy, burst([10, 3], [1, 1]))) == [{0: 4, 1: 3}, *alone]


def test_the_head_of_the_queue_blocks_those_behind_it() -> None:
    """Request 1 needs three blocks where two are free; request 2 would fit."""
    assert list(tokens_of(steps_of(VLLMV1(), burst([8, 12, 4], [3, 1, 1]), SMALL))[0]) == [0]


@pytest.mark.parametrize(("cap", "server_cap"), [(2, 9), (9, 2)])
def test_the_smaller_cap_limits_who_holds_kv(cap: int, server_cap: int) -> None:
    log = steps_of(VLLMV1(max_num_seqs=cap), burst([4] * 5, [3] * 5), EngineConfig(max_num_seqs=server_cap))
    assert max(len(batch) for batch in log.batches) == 2


def test_admission_keeps_no_watermark_of_the_server() -> None:
    config = SMALL.replace(watermark=0.5)
    assert tokens_of(steps_of(VLLMV1(), burst([4] * 4, [1] * 4), config)) == [dict.fromkeys(range(4), 4)]


@pytest.mark.parametrize(("watermark", "first"), [(0.0, [0, 1]), (0.19, [0, 1]), (0.2, [0]), (0.99, [0])])
def test_admission_leaves_the_watermark_of_the_policy_free_once_somebody_runs(
    watermark: float, first: list[int]
) -> None:
    """int(0.2 x (4 + 1)) is one block; the first request takes two of the four, the second would take the others."""
    log = steps_of(VLLMV1(watermark=watermark), burst([8, 8], [1, 1]), SMALL)
    assert list(tokens_of(log)[0]) == first


def test_a_chunk_takes_its_own_blocks_and_reserves_none() -> None:
    """Request 0 needs all four blocks and takes one a step: request 1 is let in beside it, and evicted for the last."""
    policy = VLLMV1(max_num_batched_tokens=6, long_prefill_token_threshold=4)
    log = steps_of(policy, burst([13, 3], [2, 3]), SMALL)
    assert tokens_of(log) == [{0: 4, 1: 2}, {0: 4, 1: 1}, {0: 4, 1: 1}, {0: 1}, {0: 1}, {1: 5}]
    assert log.evicted == [[], [], [], [1], [], []]
    assert log.used_blocks.tolist() == [2, 3, 4, 4, 0, 0]


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({}, {0: 5}),
        ({"scheduler_reserve_full_isl": False}, {0: 5, 1: 3}),
        ({"version": "0.18.1"}, {0: 5, 1: 3}),
        ({"version": "0.19.0"}, {0: 5}),
    ],
)
def test_admission_asks_for_the_whole_sequence_or_for_the_first_chunk(
    options: dict[str, Any], first: dict[int, int]
) -> None:
    """Request 0 takes two of four blocks; request 1 has three, one of them for its first chunk."""
    log = steps_of(VLLMV1(max_num_batched_tokens=8, **options), burst([5, 9], [1, 1]), SMALL)
    assert tokens_of(log)[0] == first


def by_priority(tiers: list[int], prompts: list[int], outputs: list[int], **options: Any) -> StepLog:
    """A run of requests that are all there, tier 0 the important one."""
    return steps_of(VLLMV1(policy="priority", **options), burst(prompts, outputs, tiers), SMALL)


def test_the_important_go_first_whoever_came_before() -> None:
    log = by_priority([1, 1, 0, 0], [4] * 4, [1] * 4, max_num_seqs=1)
    assert [next(iter(batch)) for batch in tokens_of(log)] == [2, 3, 0, 1]


def test_the_least_important_is_evicted_not_the_last() -> None:
    """All four blocks are full: the decode of request 0, strict, takes those of request 1, the relaxed one."""
    log = by_priority([0, 1, 0], [4, 4, 4], [2, 2, 2])
    assert log.evicted[:2] == [[], [1]]


def test_a_victim_that_had_its_token_already_gives_it_back() -> None:
    """Request 0, relaxed, is admitted alone and has the last free block when the important ones need one."""
    requests = Requests.create([0.0, 0.5, 0.5], [3, 4, 4], [9, 3, 3], [1, 0, 0])
    log = steps_of(VLLMV1(policy="priority"), requests, SMALL)
    assert tokens_of(log)[:3] == [{0: 3}, {0: 1, 1: 4, 2: 4}, {1: 1, 2: 1}]
    assert log.evicted[:3] == [[], [], [0]]


def test_one_that_evicts_itself_ends_the_visit() -> None:
    """Request 0, relaxed, is first in the order of admission and finds no block: nobody behind it gets a token."""
    requests = Requests.create([0.0, 0.5, 0.5], [3, 4, 7], [9, 3, 2], [1, 0, 0])
    log = steps_of(VLLMV1(policy="priority"), requests, SMALL)
    assert tokens_of(log)[:4] == [{0: 3}, {0: 1, 1: 4, 2: 7}, {}, {1: 1, 2: 1}]
    assert log.evicted[:4] == [[], [], [0], []]


def test_whoever_another_policy_has_admitted_is_on_the_list() -> None:
    requests = burst([4, 4], [4, 4], [1, 0])
    server = new_server(2, 2)
    load(server, SMALL, requests)
    arrive(server)
    policies = (VLLMV1(), VLLMV1(policy="priority"))
    for policy in policies:
        empty(server)
        policy.plan(server.visible, policy.memory(SMALL, 2), server.plan)
        assert begin(server, True) == 0
        finish(server, 1.0)
    assert server.visible.request["generated"].tolist() == [2, 2]


def test_plans_are_carried_out_as_they_are_where_kv_is_found_again() -> None:
    """With a prefix cache the chunk of a request that comes back is what it lacks then: nothing has to be cut."""
    planned: list[int] = []

    def note(view: View, memory: Memory, plan: Plan) -> None:
        planned.append(int(plan.draft["tokens"][0]))

    requests = Workload(rate=15.0, num_requests=120, lengths="lognormal:5,0.7,4.5,0.7,1024").generate(5)
    config = EngineConfig(num_blocks=200, max_model_len=1024, prefix_cache="own")
    policy = Observed(VLLMV1(max_num_batched_tokens=300), after=note)
    record = simulate(policy, requests, constant(0.02), config, log_steps=True)
    assert record.steps is not None
    assert record.row["reused_tokens"][0] > 1000
    assert [n for n in planned if n] == [int(batch[:, 1].sum()) for batch in record.steps.batches if len(batch)]


@pytest.mark.parametrize(
    ("gpu", "budget", "seats"), [("standard", 2048, 256), ("h100", 8192, 1024), ("b200", 16384, 1024)]
)
def test_a_class_of_gpus_has_its_budget_and_its_seats(gpu: Any, budget: int, seats: int) -> None:
    policy = VLLMV1(gpu=gpu)
    assert policy.params(EngineConfig())[:2].tolist() == [budget, seats]
    assert VLLMV1(gpu=gpu, max_num_batched_tokens=100).params(EngineConfig())[:2].tolist() == [100, seats]


def test_specs_may_have_the_names_of_before() -> None:
    now = VLLMV1(max_num_batched_tokens=512, max_num_seqs=64, version="0.24")
    assert baselines.make("vllm_v1:version=0.24,token_budget=512,batch_cap=64") == now
    assert now.spec == "vllm_v1:max_num_batched_tokens=512,max_num_seqs=64,version=0.24"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version": "0.40"}, "version: expected a version of vLLM from 0.13 to 0.32, got '0.40'"),
        ({"version": "latest"}, "version: expected a version of vLLM from 0.13 to 0.32, got 'latest'"),
        ({"version": "1.19"}, "version: expected a version of vLLM"),
        ({"version": "0.23.0", "watermark": 0.1}, "watermark: expected 0 before vLLM 0.24, got 0.1"),
        ({"policy": "lifo"}, "policy: expected fcfs or priority, got 'lifo'"),
        ({"gpu": "h200"}, "gpu: expected standard, h100 or b200, got 'h200'"),
    ],
)
def test_versions_and_words_that_there_are_not_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        VLLMV1(**options)
    assert words in str(refusal.value)


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
    log = steps_of(VLLMV1(), burst([8, 8, 4], [4, 4, 1]), SMALL)
    assert log.evicted[:2] == [[], [1]]
    assert tokens_of(log)[:2] == [{0: 8, 1: 8}, {0: 1}]


def test_a_decode_takes_a_block_only_when_its_last_one_is_full() -> None:
    log = steps_of(VLLMV1(), burst([7, 7], [4, 4]), SMALL)
    assert log.evicted[:3] == [[], [], [1]]
    assert tokens_of(log)[:3] == [{0: 7, 1: 7}, {0: 1, 1: 1}, {0: 1}]


def test_the_last_one_without_a_block_evicts_itself() -> None:
    log = steps_of(VLLMV1(), burst([4, 4], [3, 3]), SMALL.replace(num_blocks=3))
    assert log.evicted[:2] == [[], [1]]
    assert tokens_of(log)[:2] == [{0: 4, 1: 4}, {0: 1}]


def test_under_pressure_everybody_is_served_and_no_work_is_lost_or_made_up() -> None:
    requests = Workload(rate=15.0, num_requests=120, lengths="lognormal:5,0.7,4.5,0.7,1024").generate(5)
    config = EngineConfig(num_blocks=200, max_model_len=1024)
    record = simulate(VLLMV1(max_num_batched_tokens=48), requests, constant(0.02), config, log_steps=True)
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


@pytest.mark.parametrize(
    "name", ["max_num_batched_tokens", "max_num_seqs", "long_prefill_token_threshold", "watermark"]
)
def test_parameters_out_of_range_are_refused(name: str) -> None:
    options: dict[str, Any] = {name: -1}
    with pytest.raises(InputError, match=name):
        VLLMV1(**options)
