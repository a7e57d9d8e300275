"""P-PAS by hand: which budget an iteration gets."""

import pytest

from baselines.ppas import PPAS
from baselines.vllm_v1 import VLLMV1
from engine.demand.requests import Requests
from engine.server.policy import Policy
from tests.toys import burst, steps_of, tokens_of


def tokens(policy: Policy, requests: Requests) -> list[dict[int, int]]:
    """Tokens by request, in order, for each iteration of a run that serves everybody, one second each."""
    return tokens_of(steps_of(policy, requests))


def test_two_prompts_beside_a_decode_get_the_small_budget_one_the_large_one() -> None:
    """At 1 s two prompts are there; at 3 s request 1 has its 8 tokens, and request 2 is alone with the decode."""
    requests = Requests.create([0.0, 0.5, 0.5], [4, 8, 12], [9, 1, 1])
    policy = PPAS(ppas_b_cap=5, max_num_batched_tokens=100)
    assert tokens(policy, requests)[:4] == [{0: 4}, {0: 1, 1: 4}, {0: 1, 1: 4}, {0: 1, 2: 12}]


def test_prompts_without_a_decode_get_the_large_budget() -> None:
    assert tokens(PPAS(ppas_b_cap=5, max_num_batched_tokens=100), burst([40, 30], [1, 1])) == [{0: 40, 1: 30}]


@pytest.mark.parametrize(("plus", "chunks"), [(True, [8, 4, 4, 8, 4]), (False, [8, 8, 8, 4])])
def test_a_single_long_prompt_beside_two_decodes_counts_with_plus_only(plus: bool, chunks: list[int]) -> None:
    """It waits at first; then it lacks 20 and 16 tokens, as many as the threshold, and then 12."""
    requests = Requests.create([0.0, 0.0, 0.5], [4, 4, 28], [9, 9, 1])
    policy = PPAS(ppas_b_cap=6, max_num_batched_tokens=10, ppas_plus=plus, ppas_large_prefill_threshold=16)
    assert [batch[2] for batch in tokens(policy, requests) if 2 in batch] == chunks


def test_with_equal_budgets_it_is_vllm() -> None:
    requests = Requests.create([0.0, 0.5, 1.5, 2.5], [30, 50, 20, 9], [5, 6, 7, 8])
    ours = tokens(PPAS(ppas_b_cap=16, max_num_batched_tokens=16), requests)
    assert ours == tokens(VLLMV1(max_num_batched_tokens=16), requests)
