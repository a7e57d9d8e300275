import json
from dataclasses import replace

import numpy as np
import pytest

import baselines
from engine.config import EngineConfig
from engine.demand.requests import Requests, Tier
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.runs.distribution import Distribution
from engine.runs.metrics import summarize, ttft_samples
from engine.runs.record import Record
from engine.runs.report import Report
from engine.runs.simulate import simulate
from engine.server.plan import drop, schedule
from engine.server.state import Memory, Plan, View
from tests.toys import Improvised, constant

QUARTER = constant(0.25)
"""Every iteration takes 0.25 s."""
TIERS = (Tier("strict", 0.5, 0.2, strict=True), Tier("relaxed", 0.5, 0.5))


def two_requests() -> Requests:
    return Requests.create([0.0, 0.3], [10, 10], [3, 2], [0, 1], tiers=TIERS)


def run(config: EngineConfig | None = None, horizon_s: float = float("inf")) -> Record:
    config = config or EngineConfig(num_blocks=100)
    return simulate(baselines.make("sarathi"), two_requests(), QUARTER, config, horizon_s=horizon_s)


def test_two_requests_by_hand() -> None:
    """A: prompt done and token 1 at 0.25, token 2 at 0.5, token 3 at 0.75. B (arrives 0.3): 0.75 and 1.0.

    Batches: A; A; A and B; B. Tokens 10, 1, 11, 1. One KV block each: A for 0.75 s, B from 0.5 to 1.0.
    """
    report = summarize(run())
    assert (report.completed, report.unfinished, report.dropped, report.duration_s) == (2, 0, 0, 1.0)
    assert [report.ttft.mean, report.ttft.p50, report.ttft.max] == pytest.approx([0.35, 0.35, 0.45])
    assert [report.e2el.mean, report.e2el.max] == pytest.approx([(0.75 + 0.7) / 2, 0.75])
    assert [report.tpot.mean, report.tpot.std] == pytest.approx([0.25, 0.0])
    assert report.normalized_latency.max == pytest.approx(0.35)
    assert (report.itl.count, report.itl.mean, report.itl.max) == (3, 0.25, 0.25)
    assert (report.request_throughput, report.output_throughput, report.token_throughput) == (2.0, 5.0, 25.0)
    assert (report.iterations, report.mean_batch_requests, report.mean_batch_tokens) == (4, 5 / 4, 23 / 4)
    assert [report.busy_share, report.kv_use] == pytest.approx([1.0, 1.25 / 100])
    assert report.max_wait_s == pytest.approx(0.2)
    a, b = 3 / 0.75, 2 / 0.7
    assert report.jain_index == pytest.approx((a + b) ** 2 / (2 * (a * a + b * b)))


def test_a_deadline_holds_for_every_gap_of_its_tier() -> None:
    """Gaps of 0.25 s: late for A (0.2 s), in time for B (0.5 s); both first tokens come within 2 s."""
    report = summarize(run())
    strict, relaxed = report.tiers
    assert (strict.ttft_attainment, strict.tbt_attainment, strict.slo_attainment) == (1.0, 0.0, 0.0)
    assert (relaxed.ttft_attainment, relaxed.tbt_attainment, relaxed.slo_attainment) == (1.0, 1.0, 1.0)
    assert (strict.late_gap_share, relaxed.late_gap_share, report.late_gap_share) == (1.0, 0.0, 2 / 3)
    assert (strict.keeps_tbt, relaxed.keeps_tbt) == (False, True)
    assert (report.slo_attainment, report.goodput, relaxed.goodput) == (0.5, 1.0, 1.0)


def test_reference_semantics_add_zero_gaps_and_end_ttft_at_the_prompt() -> None:
    """A: prompt 0.25, tokens 0.5, 0.75, 1.0. B: prompt 0.75, tokens 1.0, 1.25. Gaps 0.25 x 3 and 0 x 4."""
    report = summarize(run(EngineConfig.reference(num_blocks=100)))
    assert [report.ttft.p50, report.ttft.max] == pytest.approx([0.35, 0.45])
    assert (report.itl.count, report.itl.p50, report.itl.max) == (7, 0.0, 0.25)
    assert report.itl.mean == pytest.approx(0.75 / 7)
    assert report.tiers[0].itl.count == 4
    assert report.tiers[0].itl.p90 == pytest.approx(0.25, rel=0.002)


def test_unfinished_requests_are_counted() -> None:
    """The clock stops at 0.5: A has 2 of 3 tokens, B has waited 0.2 s without a first token."""
    report = summarize(run(horizon_s=0.5))
    assert (report.arrived, report.completed, report.unfinished) == (2, 0, 2)
    assert (report.ttft.count, report.ttft.max) == (2, 0.25)
    assert report.ttft.p50 == pytest.approx((0.25 + 0.2) / 2)
    assert (report.slo_attainment, report.goodput, report.delivered_throughput) == (0.0, 0.0, 4.0)
    # Under vLLM's keys only finished requests count.
    data = report.to_dict()
    assert (data["failed"], data["total_input_tokens"], data["total_output_tokens"]) == (2, 0, 0)
    assert (data["output_throughput"], data["total_token_throughput"]) == (0.0, 0.0)
    assert (data["delivered_tokens"], data["max_concurrent_requests"]) == (2, 0)
    assert data["mean_ttft_completed_ms"] is None
    assert report.max_wait_s == pytest.approx(0.2)


def test_requests_of_the_warm_up_are_not_counted() -> None:
    report = summarize(run(), warmup_s=0.3)
    assert (report.arrived, report.completed, report.duration_s) == (1, 1, 0.7)
    assert report.ttft.max == pytest.approx(0.45)
    assert report.iterations == 4
    assert ttft_samples(run(), warmup_s=0.3) == pytest.approx([0.45])


@pytest.mark.parametrize("warmup_s", [-1.0, float("nan"), float("inf"), 1.0])
def test_a_warm_up_that_leaves_nothing_is_refused(warmup_s: float) -> None:
    with pytest.raises(InputError, match="warmup_s: expected seconds in"):
        summarize(run(), warmup_s=warmup_s)


def _serve_first(view: View, memory: Memory, plan: Plan) -> None:
    """Request 0 is served, all others are dropped."""
    for i in view.queue[: view.row[0].num_waiting]:
        if i == 0:
            schedule(plan, 0, int(view.request[0]["prompt"]))
        else:
            drop(plan, int(i))
    if view.row[0].num_running:
        schedule(plan, 0, 1)


def test_dropping_requests_does_not_make_a_load_sound() -> None:
    record = simulate(Improvised(_serve_first), two_requests(), QUARTER, EngineConfig(num_blocks=100))
    report = summarize(record)
    assert (report.completed, report.dropped, report.unfinished) == (1, 1, 0)
    # B enters with the time to the end of the run, 0.75 s, and counts as waiting all the while.
    assert report.ttft.max == pytest.approx(0.45)
    assert report.max_wait_s == pytest.approx(0.45)
    assert report.kept_up_share == 0.5
    assert report.tiers[1].slo_attainment == 0.0
    assert not report.sound


def _busy(policy: str, rate: float, num_requests: int = 300) -> tuple[Record, Report]:
    requests = Workload(rate=rate, num_requests=num_requests).generate(1)
    record = simulate(
        baselines.make(policy), requests, load_profile("rtx6000ada-mistral-7b"), EngineConfig(), log_steps=True
    )
    return record, summarize(record)


def _exact_gaps(record: Record) -> list[np.ndarray]:
    """Gaps of each tier from the step log."""
    assert record.steps is not None
    last: dict[int, float] = {}
    left = dict(enumerate(record.requests.prompt.tolist()))
    gaps: list[list[float]] = [[] for _ in record.requests.tiers]
    for start, duration, batch in zip(record.steps.start_s, record.steps.duration_s, record.steps.batches, strict=True):
        for request, tokens, is_prefill in batch.tolist():
            left[request] -= tokens if is_prefill else 0
            if left[request] == 0:
                end = start + duration
                if request in last:
                    gaps[record.requests.tier[request]].append(end - last[request])
                last[request] = end
    return [np.array(column) for column in gaps]


def test_gap_percentiles_are_within_the_stated_error() -> None:
    record, report = _busy("slai", 1.6)
    assert report.evictions == 0
    exact = _exact_gaps(record)
    for tier, gaps in zip(report.tiers, exact, strict=True):
        assert tier.itl.count == len(gaps)
        assert tier.itl.mean == pytest.approx(gaps.mean(), rel=1e-9)
        found = [tier.itl.p50, tier.itl.p90, tier.itl.p95, tier.itl.p99, tier.itl.p999]
        assert found == pytest.approx(np.percentile(gaps, [50, 90, 95, 99, 99.9]).tolist(), rel=0.002)
    assert report.itl.p99 == pytest.approx(np.percentile(np.concatenate(exact), 99), rel=0.002)


def test_percentiles_of_a_sample_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).exponential(size=1001)
    for sample in (values, values[:2], values[:1]):
        found = Distribution.of(sample)
        assert [found.p50, found.p90, found.p95, found.p99, found.p999] == pytest.approx(
            np.percentile(sample, [50, 90, 95, 99, 99.9]).tolist()
        )
        assert [found.mean, found.std] == pytest.approx([sample.mean(), sample.std()])


def test_prompt_quartiles_show_who_starves() -> None:
    """A long prompt behind a stream of short ones: shortest first makes it wait for their end."""
    n = 40
    arrival = [0.0, 0.01, *(0.05 * k for k in range(1, n - 1))]
    prompt = [100, 4000, *(100 + k for k in range(1, n - 1))]
    requests = Requests.create(arrival, prompt, [1] * n)
    record = simulate(baselines.make("sarathi:order=spf,token_budget=140"), requests, QUARTER)
    report = summarize(record)
    first, *_, last = report.prompt_quartiles
    assert [part.ttft.count for part in report.prompt_quartiles] == [10] * 4
    assert (first.longest, last.longest) == (109, 4000)
    assert last.max_wait_s == report.max_wait_s > first.max_wait_s
    assert last.ttft.max == report.ttft.max
    assert json.loads(json.dumps(report.to_dict()))["prompt_quartiles"]["q4"]["max_ttft_ms"] == 1000.0 * last.ttft.max


def test_quartiles_without_requests_are_empty() -> None:
    record = simulate(baselines.make("sarathi"), Requests.create([0.0], [10], [2]), QUARTER)
    parts = summarize(record).to_dict()["prompt_quartiles"]
    assert [part["p99.9_ttft_ms"] for part in parts.values()] == [250.0, None, None, None]


def test_capacity_criteria_tell_starvation_and_growing_queues_apart() -> None:
    _, report = _busy("sarathi", 1.0)
    assert (report.paper, report.sound, report.verdict) == (True, True, "stable")
    starving = replace(report, ttft=replace(report.ttft, p99=10.0))
    assert (starving.paper, starving.sound, starving.verdict) == (True, False, "starving")
    late = replace(report, ttft=replace(report.ttft, p50=0.5))
    assert (late.paper, late.sound, late.verdict) == (False, False, "late")
    assert replace(late, kept_up_share=0.97).verdict == "saturated"
    strict = report.tiers[0]
    slow = replace(report, tiers=(replace(strict, itl=replace(strict.itl, p99=0.11)), report.tiers[1]))
    assert not slow.paper


def _short(horizon_s: float, config: EngineConfig | None = None, first: float = 0.0) -> Report:
    requests = Requests.create(
        [first, first + 0.1], [10, 10], [9, 9], [0, 1], tiers=(TIERS[0], Tier("r", 0.5, 0.5, 0.3))
    )
    return summarize(simulate(baselines.make("sarathi"), requests, QUARTER, config, horizon_s=horizon_s))


def test_a_run_that_ends_before_anybody_is_served_shows_nothing() -> None:
    assert [_short(h).verdict for h in (0.0, 0.001, 0.6)] == ["unknown", "stable", "late"]
    for report in (_short(0.0), _short(5.0, first=9.0), _short(0.3, EngineConfig.reference())):
        assert (report.paper, report.sound, report.verdict) == (False, False, "unknown")


def test_who_waits_for_long_without_a_token_is_late_all_the_same() -> None:
    """Nobody is ever planned: at 0.2 s nothing can be said, at 0.6 s the median has passed its limit."""
    report = replace(_short(0.001), delivered_tokens=0)
    assert replace(report, ttft=replace(report.ttft, p50=0.5)).verdict == "late"
    assert replace(report, kept_up_share=0.5).verdict == "saturated"


def test_a_first_token_at_its_deadline_is_in_time_whatever_the_deadline() -> None:
    """0.7 and 0.9 are rounded down where single precision holds them; the server's own count is the report's."""
    for seconds in (0.1, 0.3, 0.7, 0.9):
        requests = Requests.create([0.0], [4], [1], tiers=(Tier("one", 1.0, 0.5, seconds),))
        record = simulate(baselines.make("sarathi"), requests, constant(seconds))
        assert summarize(record).slo_attainment == record.tier["good"][0] == 1.0


def test_an_overloaded_queue_is_called_saturated() -> None:
    _, report = _busy("sarathi", 6.0)
    assert report.kept_up_share < 0.9
    assert report.verdict == "saturated"


def test_the_dictionary_is_strict_json_with_the_keys_of_vllm() -> None:
    requests = Requests.create([0.0], [10], [1], [1], tiers=TIERS)
    record = simulate(baselines.make("sarathi"), requests, QUARTER, EngineConfig(num_blocks=100))
    data = json.loads(json.dumps(summarize(record).to_dict(), allow_nan=False))
    keys = {
        *("duration", "completed", "num_prompts", "total_input_tokens", "total_output_tokens"),
        *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
        *("failed", "max_concurrent_requests", "p99.9_ttft_ms"),
        *(f"{part}_{name}_ms" for part in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")),
    }
    assert keys <= set(data)
    assert data["median_ttft_ms"] == 250.0
    # One token has no gap and no time per further token; the strict tier has no request.
    assert data["median_itl_ms"] is None
    assert data["mean_tpot_ms"] is None
    assert data["tiers"]["strict"]["slo_attainment"] is None
    assert data["capacity"] == {"paper": True, "sound": True, "verdict": "stable"}
