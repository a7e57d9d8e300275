"""PREFLOW by hand: priorities, and what they do to started and waiting prompts."""

import numpy as np
import pytest

from baselines.preflow import PREFLOW, flow_key
from engine.demand.requests import Requests
from engine.server.state import REQUEST
from tests.toys import burst, steps_of, tokens_of


def tokens(policy: PREFLOW, requests: Requests) -> list[dict[int, int]]:
    """Tokens by request, in order, for each iteration of a run that serves everybody, one second each."""
    return tokens_of(steps_of(policy, requests))


def test_a_priority_is_age_over_the_work_in_all_and_the_work_left() -> None:
    """3 tokens, 1 of them done: 6 pairs in all and 5 left; it arrived 1.5 doublings after time 0."""
    request = np.zeros(1, REQUEST).view(np.recarray)[0]
    request.arrival, request.prompt, request.prefilled = 3.0, 3, 1
    assert flow_key(2.0, request) == pytest.approx(1.5 + np.log2(6.0) + np.log2(5.0))


def test_the_shortest_prompts_go_first() -> None:
    assert tokens(PREFLOW(token_budget=8), burst([10, 4, 6], [1, 1, 1])) == [{1: 4, 2: 4}, {2: 2, 0: 6}, {0: 4}]


@pytest.mark.parametrize(("prompt", "second"), [(9, {0: 4, 1: 2}), (8, {1: 6})])
def test_work_left_and_work_in_all_count_alike(prompt: int, second: dict[int, int]) -> None:
    """6 of 10 tokens done: 55 x 34 = 1870, between 36 x 36 = 1296 and 45 x 45 = 2025."""
    requests = Requests.create([0.0, 0.5], [10, prompt], [1, 1])
    assert tokens(PREFLOW(token_budget=6, doubling_s=1e6), requests)[:2] == [{0: 6}, second]


def test_age_lets_a_long_prompt_pass() -> None:
    """At 5 s request 1 is 4 s older than request 2: 36^2 / 16 = 81 against 15^2 = 225 with doublings of 1 s."""
    requests = Requests.create([0.0, 0.5, 4.5], [5, 8, 5], [6, 1, 1])
    blocked = PREFLOW(token_budget=1, doubling_s=1.0)
    assert next(iter(tokens(blocked, requests)[11])) == 1
    assert next(iter(tokens(PREFLOW(token_budget=1, doubling_s=1e6), requests)[11])) == 2


def test_decodes_go_before_prompts_and_count_against_the_budget() -> None:
    requests = Requests.create([0.0, 0.5], [4, 9], [4, 1])
    assert tokens(PREFLOW(token_budget=5), requests)[:3] == [{0: 4}, {0: 1, 1: 4}, {0: 1, 1: 4}]
