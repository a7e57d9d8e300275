"""TensorRT-LLM: who may run by KV, and then by tokens; by hand."""

from baselines.trtllm import TensorRTLLM
from engine.config import EngineConfig
from tests.toys import burst, steps_of, tokens_of

SMALL = EngineConfig(block_size=4, num_blocks=10, watermark=0.0, max_model_len=32)


def test_a_prompt_is_taken_in_if_its_whole_output_fits_beside_those_of_all_others() -> None:
    """10 blocks; 8 tokens of prompt and 8 of output take 4 each: two fit. At 1 s one is left, with 2 blocks to come."""
    policy = TensorRTLLM(max_new_tokens=8)
    assert tokens_of(steps_of(policy, burst([8, 8, 8], [2, 1, 1]), SMALL)) == [{0: 8, 1: 8}, {0: 1, 2: 8}]


def test_by_utilization_the_next_tokens_are_enough() -> None:
    policy = TensorRTLLM(capacity_scheduler_policy="max_utilization", max_new_tokens=8)
    assert tokens_of(steps_of(policy, burst([8, 8, 8], [2, 1, 1]), SMALL)) == [{0: 8, 1: 8, 2: 8}, {0: 1}]


def test_by_utilization_the_last_started_pauses_for_one_that_finds_no_block() -> None:
    """Two prompts of 2 blocks fill 4; request 0 needs a third one, and request 2, of 1 block, stands behind 1."""
    policy = TensorRTLLM(capacity_scheduler_policy="max_utilization")
    log = steps_of(policy, burst([8, 8, 4], [3, 2, 1]), SMALL.replace(num_blocks=4))
    assert log.evicted[:2] == [[], [1]]
    assert tokens_of(log) == [{0: 8, 1: 8}, {0: 1}, {0: 1}, {1: 9, 2: 4}]


def test_an_output_beyond_what_was_reserved_pauses_the_last_one() -> None:
    log = steps_of(TensorRTLLM(max_new_tokens=1), burst([7, 7], [4, 4]), SMALL.replace(num_blocks=4))
    assert log.evicted[:3] == [[], [], [1]]
    assert tokens_of(log)[:3] == [{0: 7, 1: 7}, {0: 1, 1: 1}, {0: 1}]


def test_the_first_prompt_with_more_tokens_than_are_left_ends_the_batch() -> None:
    policy = TensorRTLLM(max_num_tokens=10)
    assert tokens_of(steps_of(policy, burst([6, 6, 3], [2, 1, 1]))) == [{0: 6}, {0: 1, 1: 6, 2: 3}]


def test_chunks_end_at_blocks_and_who_fits_into_what_is_left_runs() -> None:
    policy = TensorRTLLM(max_num_tokens=10, enable_chunked_context=True, max_new_tokens=2)
    batches = tokens_of(steps_of(policy, burst([6, 6, 3], [2, 1, 1]), SMALL))
    assert batches == [{0: 6, 1: 4}, {0: 1, 1: 2, 2: 3}]
    assert tokens_of(steps_of(policy, burst([7, 6, 3], [1, 1, 1]), SMALL)) == [{0: 7, 2: 3}, {1: 6}]


def test_a_prompt_longer_than_a_batch_runs_in_chunks() -> None:
    assert tokens_of(steps_of(TensorRTLLM(max_num_tokens=10), burst([25], [2]))) == [{0: 10}, {0: 10}, {0: 5}, {0: 1}]


def test_the_smaller_cap_limits_who_runs() -> None:
    for policy, config in ((TensorRTLLM(max_batch_size=2), None), (TensorRTLLM(), EngineConfig(max_num_seqs=2))):
        log = steps_of(policy, burst([4] * 5, [3] * 5), config)
        assert max(len(batch) for batch in log.batches) == 2
