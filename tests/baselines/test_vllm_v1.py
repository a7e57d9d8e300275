"""vLLM V1: one budget, running first, nothing admitted beside an eviction."""

import pytest

from baselines.vllm_v1 import VLLMV1
from engine.config import EngineConfig
from engine.errors import InputError
from engine.requests import Requests
from engine.simulate import StepLog, simulate
from tests.toys import constant

SECOND = constant(1.0)


def burst(prompts: list[int], outputs: list[int]) -> Requests:
    """Requests that are all there at time 0."""
    return Requests.create([0.0] * len(prompts), prompts, outputs)


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


def test_decodes_beyond_the_budget_starve_the_youngest() -> None:
    batches = tokens(steps(VLLMV1(token_budget=2), burst([1, 1, 1], [4, 4, 4])))
    assert batches[:4] == [{0: 1, 1: 1}] * 4
    assert batches[4] == {2: 1}


def test_a_long_prompt_gets_no_more_than_the_threshold() -> None:
    policy = VLLMV1(token_budget=100, long_prefill_token_threshold=4)
    assert tokens(steps(policy, burst([10, 3], [1, 1]))) == [{0: 4, 1: 3}, {0: 4}, {0: 2}]


def test_the_head_of_the_queue_blocks_those_behind_it() -> None:
    """Request 1 needs three blocks where two are free; request 2 would fit."""
    config = EngineConfig(block_size=4, num_blocks=4, watermark=0.0, max_model_len=16)
    assert list(tokens(steps(VLLMV1(), burst([8, 12, 4], [3, 1, 1]), config))[0]) == [0]


def test_an_eviction_takes_the_last_and_admits_nobody() -> None:
    """Two prompts of two blocks fill the memory; the first decode that needs a block evicts request 1 alone."""
    config = EngineConfig(block_size=4, num_blocks=4, watermark=0.0, max_model_len=16)
    log = steps(VLLMV1(), burst([8, 8], [4, 4]), config)
    assert log.evicted[1] == [1]
    assert list(tokens(log)[1]) == [0]


@pytest.mark.parametrize("name", ["token_budget", "batch_cap", "long_prefill_token_threshold"])
def test_parameters_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        VLLMV1(**{name: -1})
