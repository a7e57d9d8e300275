"""The bound on the capacity: nobody serves faster, and with all the company there is it is almost reached."""

import numpy as np
import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.device.bounds import bound_note, capacity_bound, least_seconds
from engine.device.latency import LatencyModel, iteration_seconds, load_profile
from engine.runs.simulate import simulate
from engine.server.features import new_features
from engine.server.state import FINISHED

CONFIG = EngineConfig()
COMPANY = ("sarathi", "vllm:max_batched_tokens=4096", "vllm_v1", "slai", "orca", "slackfit")
"""Policies that mix prompts and decodes in all ways."""
BURST = Workload(arrivals="burst", num_requests=150).generate(0)


@pytest.mark.parametrize("profile", ["rtx6000ada-mistral-7b", "cpu-tiny-mistral", "tile-unit"])
@pytest.mark.parametrize("policy", ["sarathi", "sarathi:token_budget=8192", "slai", "vllm", "slackfit"])
def test_no_policy_is_busy_for_less(profile: str, policy: str) -> None:
    model = load_profile(profile)
    busy = float(simulate(baselines.make(policy), BURST, model, CONFIG).row["busy"][0])
    assert least_seconds(model, CONFIG, BURST).sum() <= busy


def test_one_request_alone_by_hand() -> None:
    """10 prompt and 4 output tokens (3 decodes): 1 s per token, 0.1 s per pair, 0.01 s per KV token read."""
    model = LatencyModel(overhead=0.0, floor=0.0, per_token=1.0, per_pair=0.1, per_context=0.01)
    requests = Requests.create([0.0], [10], [4])
    found = least_seconds(model, CONFIG, requests)
    assert found.tolist() == pytest.approx([13.0 + 0.1 * 55 + 0.01 * (10 + 11 + 12)])
    busy = float(simulate(baselines.make("sarathi"), requests, model, CONFIG).row["busy"][0])
    assert found[0] <= busy <= 1.02 * found[0]


def test_a_large_batch_shares_overhead_and_weights() -> None:
    model = LatencyModel(overhead=1.0, floor=50.0, per_token=0.01, per_pair=0.0, per_context=0.0)
    config = EngineConfig(max_batched_tokens=10_000)
    requests = Requests.create(np.zeros(10), [1000] * 10, [1] * 10)
    busy = float(simulate(baselines.make("sarathi:token_budget=10000"), requests, model, config).row["busy"][0])
    assert least_seconds(model, config, requests).sum() == pytest.approx(busy)


def test_a_table_is_read_where_a_token_costs_least() -> None:
    table = ((1.0, 1.0), (100.0, 10.0), (200.0, 30.0))
    model = LatencyModel(overhead=0.0, floor=0.0, per_token=0.0, per_pair=0.0, per_context=0.0, table=table)
    assert least_seconds(model, CONFIG, Requests.create([0.0], [50], [1])).tolist() == pytest.approx([50 * 0.1])


def test_places_in_batches_and_kv_read_by_chunks_are_paid_by_hand() -> None:
    """10 prompt and 4 output tokens: 13 tokens in 4 places, one of them a chunk that reads 55 / 128 tiles of KV."""
    model = LatencyModel(1.0, 0.0, 0.5, 0.0, 0.0, per_request=0.2, per_chunk=0.3, per_read=0.01, any_chunk=9.0)
    config = EngineConfig(max_batched_tokens=100, decision_s=0.5, decision_per_request_s=0.1)
    found = least_seconds(model, config, Requests.create([0.0], [10], [4]))
    assert found.tolist() == pytest.approx(
        [13 * (0.5 + 1.0 / 100) + 4 * 0.2 + 0.3 + 0.01 * 55 / 128 + 13 * 0.5 / 100 + 4 * 0.1]
    )


def _random_profile(rng: np.random.Generator) -> LatencyModel:
    def some(scale: float) -> float:
        return float(scale * rng.exponential()) if rng.random() < 0.5 else 0.0

    table: tuple[tuple[float, float], ...] = ()
    if rng.random() < 0.6:
        tokens = np.unique(rng.integers(1, 3000, int(rng.integers(2, 6))))
        if len(tokens) > 1:
            table = tuple((float(n), float(rng.exponential(0.05) + 1e-4)) for n in tokens)
    return LatencyModel(
        overhead=some(0.01) + (0.0 if table else 1e-3),
        floor=0.0 if table else some(0.02),
        per_token=0.0 if table else some(1e-4),
        per_pair=some(1e-8),
        per_context=some(1e-7),
        per_request=some(1e-4),
        per_chunk=some(1e-3),
        any_chunk=some(1e-3),
        per_read=some(1e-8),
        per_uncached=some(1e-7),
        per_mixed=some(1e-7),
        cached=some(1e3),
        eager_floor=some(0.05),
        graph_tokens=float(rng.choice([0.0, 128.0, 512.0])),
        query_tile=128 if rng.random() < 0.5 else 256,
        tile=int(rng.choice([1, 1, 64, 128])),
        tick=float(rng.choice([0.0, 0.0, 1e-3, 0.02])),
        table=table,
    )


@pytest.mark.parametrize("seed", range(40))
def test_no_policy_beats_the_bound_on_any_profile(seed: int) -> None:
    """Tables with any slopes, tiles, ticks, costs of every kind; whole prompts, chunks and decodes in any company."""
    rng = np.random.default_rng(seed)
    model = _random_profile(rng)
    config = EngineConfig(
        max_batched_tokens=int(rng.choice([4096, 65_536])),
        decision_s=float(rng.choice([0.0, 1e-3])),
        decision_per_request_s=float(rng.choice([0.0, 1e-4])),
    )
    prompts = rng.integers(1, 500, 30)
    requests = Requests.create(np.zeros(30), prompts, rng.integers(1, 40, 30))
    seconds = least_seconds(model, config, requests)
    bound = capacity_bound(seconds)
    assert bound is None or 0.0 < bound < np.inf
    others = sorted(set(baselines.names()) - set(COMPANY))
    for policy in map(baselines.make, (*COMPANY, others[seed % len(others)])):
        told = predict(requests, policy.channel, 0) if policy.channel else requests
        record = simulate(policy, told, model, config)
        assert (np.diff(np.sort(record.ledger["completed"])) >= 0.0).all()
        assert record.ledger["completed"].min() > 0.0 or model.tick > 0.0
        done = record.request["status"] == FINISHED
        assert seconds[done].sum() <= float(record.row["busy"][0]) * (1.0 + 1e-9)


@pytest.mark.parametrize("table", [((1.0, 0.01), (512.0, 0.05), (1024.0, 0.04)), ((100.0, 0.01), (200.0, 0.05))])
def test_a_table_never_leads_below_zero_beyond_its_ends(table: tuple[tuple[float, float], ...]) -> None:
    """A falling end would give batches of 3000 tokens negative time; a steep beginning those of one token."""
    model = LatencyModel(0.0, 0.0, 0.0, 0.0, 0.0, table=table)
    (first, least), (last, most) = table[0], table[-1]
    for tokens in (1, 10, 3000, 60_000):
        features = new_features()
        features["tokens"] = tokens
        seconds = float(iteration_seconds(model.compiled(), features))
        assert seconds > 0.0
        if tokens < first:
            assert seconds >= least * tokens / first
        if tokens > last and most < table[-2][1]:
            assert seconds == pytest.approx(most * tokens / last)
    bound = capacity_bound(least_seconds(model, CONFIG, BURST))
    assert bound is not None
    assert bound > 0.0


def test_without_seconds_there_is_no_bound() -> None:
    """Iterations that rounding makes free bound nothing."""
    model = LatencyModel(1e-4, 0.0, 0.0, 0.0, 0.0, tick=0.02)
    assert capacity_bound(least_seconds(model, CONFIG, BURST)) is None
    assert bound_note(None).startswith("No bound")
    assert bound_note(2.366) == "No scheduler sustains more than 2.37 requests/s of this kind on this device (1/E(w))."


def test_a_request_that_cannot_be_served_needs_nothing() -> None:
    config = EngineConfig(max_model_len=100)
    model = load_profile("rtx6000ada-mistral-7b")
    cut, whole, refused = least_seconds(model, config, Requests.create([0.0] * 3, [50, 50, 200], [90, 50, 5]))
    assert cut == whole > 0.0
    assert refused == 0.0
