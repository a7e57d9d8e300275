"""A request that reaches `max_model_len` ends there, as in a real engine; every number counts what was served."""

import numpy as np
import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.bounds import least_seconds
from engine.errors import InputError
from engine.runs.metrics import summarize
from engine.runs.simulate import simulate
from engine.server.state import FINISHED
from tests.toys import constant

SECOND = constant(1.0)
SARATHI = baselines.Sarathi()


def test_a_request_ends_at_the_length_of_the_model_and_is_counted_so() -> None:
    """Prompt 4, 10 tokens wanted, 8 tokens of context: 4 tokens, at 1, 2, 3 and 4 s; the second gets all of its 2."""
    requests = Requests.create([0.0, 10.0], [4, 4], [10, 2])
    record = simulate(SARATHI, requests, SECOND, EngineConfig(max_model_len=8))
    assert record.request["status"].tolist() == [FINISHED, FINISHED]
    assert record.ledger["delivered"].tolist() == [4, 2]
    assert record.ledger["completed"].tolist() == [4.0, 12.0]
    assert record.ledger["output"].tolist() == [10, 2]
    report = summarize(record)
    assert (report.completed, report.ended_by_length, report.dropped, report.unfinished) == (2, 1, 0, 0)
    assert report.output_tokens == 6
    assert report.tpot.max == 1.0
    assert report.to_dict()["ended_by_length"] == 1


def test_a_prompt_one_token_shorter_than_the_model_gets_one_token() -> None:
    requests = Requests.create([0.0], [7], [5])
    record = simulate(SARATHI, requests, SECOND, EngineConfig(max_model_len=8))
    assert record.ledger["delivered"].tolist() == [1]
    assert float(record.row["now"][0]) == 1.0
    with pytest.raises(InputError, match=r"request 0: expected prompt < 7 tokens \(max_model_len\), got 7 \+ 5"):
        simulate(SARATHI, requests, SECOND, EngineConfig(max_model_len=7))


@pytest.mark.parametrize("spec", baselines.names())
@pytest.mark.parametrize("swap", [0.0, 25e9])
def test_nobody_gets_beyond_the_limit_whatever_is_evicted_or_swapped(spec: str, swap: float) -> None:
    """KV for 3 of 8 requests at their longest; every policy delivers min(output, limit - prompt) tokens to each."""
    rng = np.random.default_rng(1)
    prompt, output = rng.integers(1, 39, 8), rng.integers(1, 60, 8)
    requests = Requests.create(np.arange(8) * 0.5, prompt, output, prediction=output)
    config = EngineConfig(
        block_size=4, num_blocks=30, watermark=0.0, max_model_len=40, swap_bandwidth=swap, kv_bytes_per_token=1024
    )
    record = simulate(baselines.make(spec), requests, SECOND, config)
    assert record.request["status"].tolist() == [FINISHED] * 8
    assert record.ledger["delivered"].tolist() == np.minimum(output, 40 - prompt).tolist()
    assert record.request["length"].max() <= 40
    assert int(record.row["free_blocks"][0]) == 30


def test_the_reference_semantics_know_no_such_end() -> None:
    record = simulate(SARATHI, Requests.create([0.0], [4], [10]), SECOND, EngineConfig.reference(max_model_len=8))
    assert record.ledger["delivered"].tolist() == [10]


def test_the_bound_on_the_load_counts_what_is_served() -> None:
    """The same requests with the outputs that they get need the same seconds."""
    config, wanted = EngineConfig(max_model_len=40), Requests.create([0.0, 1.0], [10, 39], [100, 100])
    got = wanted.replace(output=[30, 1])
    assert least_seconds(SECOND, config, wanted).tolist() == least_seconds(SECOND, config, got).tolist()
