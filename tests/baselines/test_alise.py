"""ALISE: levels of predicted time, aging, doubled estimates, compressed offloading."""

import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.errors import InputError
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from tests.toys import constant

SECOND = constant(1.0)
TIMES = "prompt_token_s=0,context_token_s=0,decode_s=1"
"""Predicted time = expected output tokens left."""


def steps(settings: str, requests: Requests, config: EngineConfig | None = None) -> StepLog:
    """A run of one second per iteration."""
    record = simulate(baselines.make(f"alise:{settings}"), requests, SECOND, config, log_steps=True)
    assert record.steps is not None
    return record.steps


def served(settings: str, requests: Requests) -> list[int]:
    """The request of each iteration, where only one runs at a time."""
    return [int(batch[0, 0]) for batch in steps(f"batch_cap=1,{settings}", requests).batches]


def known(arrivals: list[float], outputs: list[int], predictions: list[int] | None = None) -> Requests:
    """Requests with prompts of two tokens."""
    return Requests.create(arrivals, [2] * len(outputs), outputs, prediction=predictions or outputs)


def test_a_lower_level_of_time_goes_first_and_within_a_level_the_earlier_arrival() -> None:
    requests = known([0.0, 0.0, 0.0], [7, 3, 2])
    assert served(f"{TIMES},first_level_s=4,age_s=0", requests) == [1] * 3 + [2] * 2 + [0] * 7
    assert served(f"{TIMES},first_level_s=3,age_s=0", requests) == [2] * 2 + [1] * 3 + [0] * 7


def test_levels_are_geometric_and_the_last_one_is_open() -> None:
    """Limits 4 and 8: 40 and 9 tokens are in the last of three levels, 7 in the second."""
    requests = known([0.0, 0.0, 0.0], [40, 9, 7])
    order = served(f"{TIMES},first_level_s=4,factor=2,levels=3,age_s=0", requests)
    assert order == [2] * 7 + [0] * 40 + [1] * 9
    assert served(f"{TIMES},first_level_s=4,levels=1,age_s=0", requests) == [0] * 40 + [1] * 9 + [2] * 7
    assert served(f"{TIMES},first_level_s=4,factor=5,levels=3,age_s=0", requests) == [1] * 9 + [2] * 7 + [0] * 40


def test_a_request_rises_as_its_time_runs_out() -> None:
    """Request 1 comes when 3 of the 8 tokens of request 0 are left, which is the top level as well."""
    assert served(f"{TIMES},first_level_s=4,age_s=0", known([0.0, 5.0], [8, 3])) == [0] * 8 + [1] * 3
    assert served(f"{TIMES},first_level_s=4,age_s=0", known([0.0, 4.0], [8, 3])) == [0] * 4 + [1] * 3 + [0] * 4


def test_prompt_and_context_cost_time_too() -> None:
    requests = Requests.create([0.0, 0.0], [50, 10], [3, 4], prediction=[3, 4])
    prompts = "prompt_token_s=0.1,context_token_s=0,decode_s=0"
    contexts = "prompt_token_s=0,context_token_s=0.1,decode_s=0"
    assert served(f"{prompts},first_level_s=2,age_s=0", requests)[0] == 1
    assert served(f"{prompts},first_level_s=6,age_s=0", requests)[0] == 0
    assert served(f"{contexts},first_level_s=5,age_s=0", requests)[0] == 1
    assert served(f"{contexts},first_level_s=16,age_s=0", requests)[0] == 0


def test_who_waits_long_rises_one_level_at_a_time() -> None:
    """Request 0 starts two levels below request 1 and stands before it (as the earlier one) after 2 x 3 s."""
    requests = known([0.0, 0.0], [20, 9])
    settings = f"{TIMES},first_level_s=10,factor=1.5,levels=3"
    assert served(f"{settings},age_s=3", requests)[:8] == [1] * 6 + [0] * 2
    assert served(f"{settings},age_s=4", requests)[:10] == [1] * 8 + [0] * 2
    assert served(f"{settings},age_s=0", requests)[:10] == [1] * 9 + [0]


def test_an_estimate_that_is_outlived_is_doubled() -> None:
    """Request 0 is expected to have 2 tokens, after 2 of them 4, after 4 of them 8: then four more, a level down."""
    requests = known([0.0, 0.0], [9, 2], [2, 2])
    order = served(f"{TIMES},first_level_s=3,age_s=0", requests)
    assert order == [0] * 4 + [1] * 2 + [0] * 5


def test_the_last_of_the_list_is_offloaded_at_half_its_size() -> None:
    config = EngineConfig(
        block_size=4, num_blocks=4, watermark=0.0, swap_bandwidth=100.0, swap_space_gib=1.0, kv_bytes_per_token=25
    )
    requests = Requests.create([0.0, 1.0], [12, 8], [4, 2], prediction=[4, 2])
    log = steps(f"{TIMES},first_level_s=3,age_s=0", requests, config)
    assert log.swapped[:2] == [[], [0]]
    assert log.duration_s[1] == pytest.approx(1.0 + 3 * 0.5), "three blocks of 100 bytes, half of it, at 100 bytes/s"


@pytest.mark.parametrize(
    "setting", ["levels=0", "levels=65", "first_level_s=0", "factor=0.5", "age_s=-1", "decode_s=-1"]
)
def test_bad_parameters_are_refused(setting: str) -> None:
    name, value = setting.split("=")
    with pytest.raises(InputError, match=rf"policy 'alise': {name}: expected .*, got {value}"):
        baselines.make(f"alise:{setting}")
