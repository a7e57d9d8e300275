"""SGLang: prompts before decodes, its orders, its estimate of the output to come, and retraction; by hand."""

import pytest

import baselines
from baselines.sglang import SGLang
from engine.config import EngineConfig
from engine.demand.requests import Requests
from tests.toys import burst, steps_of, tokens_of

SMALL = EngineConfig(block_size=4, num_blocks=25, watermark=0.0, max_model_len=64)


def test_chunks_of_prompts_fill_a_batch_and_decodes_run_together_afterwards() -> None:
    batches = tokens_of(steps_of(SGLang(chunked_prefill_size=8), burst([5, 6, 2], [2, 2, 2])))
    assert batches == [{0: 5, 1: 3}, {1: 3, 2: 2}, {0: 1, 1: 1, 2: 1}]


def test_decodes_wait_for_a_prompt_unless_chunks_are_mixed() -> None:
    requests = Requests.create([0.0, 1.5], [4, 4], [5, 1])
    assert tokens_of(steps_of(SGLang(), requests))[:4] == [{0: 4}, {0: 1}, {1: 4}, {0: 1}]
    assert tokens_of(steps_of(SGLang(enable_mixed_chunk=True), requests))[:4] == [{0: 4}, {0: 1}, {1: 4, 0: 1}, {0: 1}]


def test_decodes_count_against_the_chunk_they_are_mixed_with() -> None:
    policy = SGLang(enable_mixed_chunk=True, chunked_prefill_size=4)
    requests = Requests.create([0.0, 0.5], [4, 4], [4, 1])
    assert tokens_of(steps_of(policy, requests)) == [{0: 4}, {1: 3, 0: 1}, {1: 1, 0: 1}, {0: 1}]


def test_lof_takes_those_first_who_allow_the_most_output() -> None:
    requests = burst([4, 4, 4], [1, 1, 1]).replace(prediction=[3.0, 9.0, 5.0])
    policy = SGLang(schedule_policy="lof", chunked_prefill_size=4)
    assert tokens_of(steps_of(policy, requests)) == [{1: 4}, {2: 4}, {0: 4}]
    assert (policy.channel, SGLang().channel) == ("oracle", "")


def test_hrrn_weighs_the_tokens_processed_since_an_arrival_by_its_own() -> None:
    """At 3 s 12 tokens are done: 8 of them since request 1 (8 tokens) came, 4 since request 2 (2 tokens) did."""
    requests = Requests.create([0.0, 0.5, 1.5], [12, 8, 2], [1, 1, 1])
    policy = SGLang(schedule_policy="hrrn", chunked_prefill_size=4)
    assert tokens_of(steps_of(policy, requests)) == [{0: 4}, {0: 4}, {0: 4}, {2: 2, 1: 2}, {1: 4}, {1: 2}]
    fcfs = tokens_of(steps_of(SGLang(chunked_prefill_size=4), requests))
    assert fcfs[3:] == [{1: 4}, {1: 4}, {2: 2}]


def test_hrrn_leaves_a_long_queue_as_it_is() -> None:
    """130 wait behind a prompt in progress: the first come first, although the last one is the shortest."""
    requests = Requests.create([0.0] + [0.5] * 130, [8] + [4] * 129 + [1], [1] * 131)
    policy = SGLang(schedule_policy="hrrn", chunked_prefill_size=4)
    batches = tokens_of(steps_of(policy, requests, EngineConfig(max_num_seqs=256)))
    assert batches[:5] == [{0: 4}, {0: 4}, {1: 4}, {2: 4}, {130: 1, 3: 3}]


def test_a_started_prompt_leaves_room_for_shorter_ones_only_in_that_order() -> None:
    requests = Requests.create([0.0, 0.5, 0.5], [12, 5, 2], [1, 1, 1])
    policy = SGLang(schedule_policy="shortest-prefill-first", chunked_prefill_size=4)
    assert tokens_of(steps_of(policy, requests))[:3] == [{0: 4}, {0: 2, 2: 2}, {0: 4}]
    assert tokens_of(steps_of(SGLang(chunked_prefill_size=4), requests))[:3] == [{0: 4}, {0: 4}, {0: 4}]


def test_who_has_no_kv_for_all_that_its_user_allows_waits_until_somebody_has_left() -> None:
    """100 tokens of KV: 8 + 40 + a block for request 0 leave 48, request 1 asks for 52; later decodes free no more."""
    batches = tokens_of(steps_of(SGLang(max_new_tokens=40), burst([8, 8], [3, 1]), SMALL))
    assert batches == [{0: 8}, {0: 1}, {0: 1}, {1: 8}]


def test_running_requests_count_with_a_share_of_what_they_may_still_have() -> None:
    """At 1 s: 23 blocks, 92 tokens, less 0.7 x 39 of request 0, are 64.7: 52 fit, 65 do not."""
    requests = Requests.create([0.0, 0.5], [8, 8], [3, 1])
    assert tokens_of(steps_of(SGLang(max_new_tokens=40), requests, SMALL))[1] == {1: 8}
    requests = Requests.create([0.0, 0.5], [8, 21], [3, 1])
    assert tokens_of(steps_of(SGLang(max_new_tokens=40), requests, SMALL))[1] == {0: 1}
    trusting = SGLang(max_new_tokens=40, schedule_conservativeness=0.5)
    assert tokens_of(steps_of(trusting, requests, SMALL))[1] == {1: 21}


def test_a_seat_that_is_left_is_noticed_one_iteration_later() -> None:
    config = EngineConfig(max_num_seqs=2)
    batches = tokens_of(steps_of(SGLang(), burst([4, 4, 4], [2, 5, 1]), config))
    assert batches[:4] == [{0: 4, 1: 4}, {0: 1, 1: 1}, {1: 1}, {2: 4}]


def test_the_fewest_output_tokens_then_the_longest_prompt_are_retracted() -> None:
    """5 blocks of 4: after 6 iterations both hold 2, and request 1 needs a third one; request 0 has 4 prompt tokens."""
    log = steps_of(SGLang(max_new_tokens=1), burst([4, 3], [8, 8]), SMALL.replace(num_blocks=5, max_model_len=16))
    assert log.evicted[6] == [0]
    assert tokens_of(log)[5:] == [{0: 1, 1: 1}, {1: 1}, {1: 1}, {0: 10}, {0: 1}]


def test_who_was_retracted_comes_to_the_end_of_the_queue() -> None:
    requests = Requests.create([0.0, 0.0, 5.5], [4, 3, 4], [8, 8, 1])
    log = steps_of(SGLang(max_new_tokens=1), requests, SMALL.replace(num_blocks=5, max_model_len=16))
    assert log.evicted[6] == [0]
    assert [next(iter(batch)) for batch in tokens_of(log)[7:]].index(2) < [list(b) for b in tokens_of(log)[7:]].index(
        [0]
    )


@pytest.mark.parametrize("order", ["fcfs", "lof", "hrrn", "shortest-prefill-first"])
def test_every_order_is_a_spec(order: str) -> None:
    assert baselines.make(f"sglang:schedule_policy={order}") == SGLang(schedule_policy=order)  # type: ignore[arg-type]
