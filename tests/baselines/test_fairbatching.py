"""FairBatching by hand: a token costs 1/128 s, so that a batch of 16 lasts as long as the objective between tokens."""

from baselines.fairbatching import FairBatching
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from tests.toys import burst, steps_of, tokens_of

DEVICE = LatencyModel(overhead=0.0, floor=0.0, per_token=1 / 128, per_pair=0.0, per_context=0.0)
FAIR = FairBatching(ttft_slo=1.0, tpot_slo=0.125)


def steps(requests: Requests, config: EngineConfig | None = None) -> StepLog:
    """The step log of a run that serves everybody."""
    return steps_of(FAIR, requests, config, DEVICE)


def test_a_batch_lasts_as_long_as_the_most_urgent_decode_can_wait() -> None:
    """Token 1 of request 0 is due at 144/128 s: after 4/128 s that is 140 tokens; later 16 are left each time."""
    batches = tokens_of(steps(Requests.create([0.0, 1 / 128], [4, 200], [5, 1])))
    assert batches[:4] == [{0: 4}, {0: 1, 1: 139}, {0: 1, 1: 15}, {0: 1, 1: 15}]


def test_a_decode_with_more_slack_than_one_objective_beyond_the_batch_waits_behind_prompts() -> None:
    """At 45/128 s the slacks are 115/128 and 131/128 s, and a batch of 115 tokens has none to spare for request 1."""
    requests = Requests.create([0.0, 0.25, 42 / 128], [40, 4, 300], [9, 9, 1])
    batches = tokens_of(steps(requests))
    assert batches[:3] == [{0: 40}, {0: 1, 1: 4}, {0: 1, 2: 114}]


def test_other_decodes_run_where_time_is_left() -> None:
    requests = Requests.create([0.0, 0.25, 42 / 128], [40, 4, 30], [9, 9, 1])
    assert tokens_of(steps(requests))[2] == {0: 1, 2: 30, 1: 1}


def test_a_prompt_without_decodes_gets_at_least_64_tokens() -> None:
    assert tokens_of(steps(burst([100], [1]))) == [{0: 64}, {0: 36}]


def test_the_tightest_objective_of_any_tier_is_the_shortest_batch() -> None:
    """Tiers of 0.1 and 0.5 s and 2 s to the first token: 12 tokens fit into 0.1 s."""
    policy, requests = FairBatching(), burst([4, 4, 4, 4], [1, 1, 1, 1], [0, 1, 1, 1])
    log = simulate(policy, requests, DEVICE, log_steps=True).steps
    assert log is not None
    assert tokens_of(log)[0] == {0: 4, 1: 4, 2: 4}


def test_an_urgent_decode_takes_the_block_of_the_youngest_outside_the_batch() -> None:
    config = EngineConfig(block_size=4, num_blocks=4, watermark=0.0, max_model_len=16)
    log = steps(burst([8, 8], [3, 3]), config)
    assert log.evicted[:2] == [[], [1]]
    assert tokens_of(log)[:2] == [{0: 8, 1: 8}, {0: 1}]
