"""slackfit keeps its batches within their limit, its strict users within their deadline, and adapts to its device."""

import numpy as np
import pytest

import baselines
from agents.policies import resolve
from engine.compiled.records import record
from engine.config import EngineConfig
from engine.demand.requests import Requests, Tier
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel, load_profile
from engine.device.predicting import DEVICE as DEVICE_CELLS
from engine.device.predicting import device_cells, predicted
from engine.errors import InputError
from engine.runs.metrics import summarize
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from engine.server.features import EMPTY, add

DEVICE = load_profile("rtx6000ada-mistral-7b")


def shortest(model: LatencyModel) -> float:
    """Seconds of a batch of one token."""
    return float(predicted(record(DEVICE_CELLS)(device_cells(model)), add(EMPTY, 0.0, 1.0, True)))


SHORTEST_S = shortest(DEVICE)
BUSY = Workload(rate=1.8, num_requests=500).generate(0)


@pytest.mark.parametrize("spec", ["slackfit", "slackfit:tuned", "slackfit:limit=0.6,longest=3"])
def test_batches_with_prompts_stay_within_the_limit(spec: str) -> None:
    policy = baselines.make(spec)
    assert isinstance(policy, baselines.Slackfit)
    steps = simulate(policy, BUSY, DEVICE, log_steps=True).steps
    assert steps is not None
    with_prompts = np.array([bool((batch[:, 2] == 1).any()) for batch in steps.batches])
    longest = policy.longest * SHORTEST_S
    # A chunk of LEAST_CHUNK tokens always runs, and decodes that must run do.
    assert np.quantile(steps.duration_s[with_prompts], 0.99) <= longest + 1e-9
    assert steps.duration_s[with_prompts].max() <= longest + 64 * 84e-6 + 1e-3


def test_every_tier_meets_its_deadline_between_tokens_below_saturation() -> None:
    report = summarize(simulate(baselines.make("slackfit"), BUSY, DEVICE))
    for tier in report.tiers:
        assert tier.itl.p99 < {"strict": 0.1}.get(tier.name, 0.5)


def test_the_median_ttft_is_a_quarter_shorter_than_that_of_slai() -> None:
    ours, slai = (summarize(simulate(baselines.make(spec), BUSY, DEVICE)).ttft.p50 for spec in ("slackfit", "slai"))
    assert ours < 0.75 * slai


@pytest.mark.parametrize("factor", [0.6, 2.0])
def test_batches_take_as_long_on_a_faster_or_slower_device(factor: float) -> None:
    """The profile is that of another device; the seconds that batches take correct it."""
    tiers = (Tier("only", 1.0, 0.1),)
    requests = Workload(arrivals="burst", num_requests=60, lengths="fixed:3000,60", tiers=tiers).generate(0)
    steps = simulate(
        baselines.make(f"slackfit:limit=1.0,longest=100,profile={DEVICE.name}"),
        requests,
        DEVICE.scaled(factor),
        log_steps=True,
    ).steps
    assert steps is not None
    middle = slice(len(steps.batches) // 2, 3 * len(steps.batches) // 4)
    assert np.median(steps.duration_s[middle]) == pytest.approx(0.1, rel=0.1)


def _steps(spec: str, model: LatencyModel) -> StepLog:
    steps = simulate(baselines.make(spec), BUSY, model, log_steps=True).steps
    assert steps is not None
    return steps


def _shares(steps: StepLog) -> tuple[float, float]:
    """Of the batches with prompts: the share that decode, too; of all batches: the share with prompts."""
    prompts, decodes = (np.array([bool((b[:, 2] == kind).any()) for b in steps.batches]) for kind in (1, 0))
    return float((prompts & decodes).sum() / prompts.sum()), float(prompts.mean())


STEPPED = LatencyModel(
    0.005, 0.0, 0.0, 5e-9, 1.4e-7, table=((1.0, 0.015), (256.0, 0.02), (272.0, 0.03), (1024.0, 0.08), (2048.0, 0.16))
)
"""A device with a step, which its ends do not show."""


def test_a_batch_is_as_long_as_meant_on_any_device() -> None:
    """By default the profile is that of the device: no step and no term of it is a surprise."""
    for model in (STEPPED, STEPPED.mixed(1.1), load_profile(f"{DEVICE.name}:speed=0.8")):
        steps = _steps("slackfit", model)
        with_prompts = np.array([bool((batch[:, 2] == 1).any()) for batch in steps.batches])
        assert np.quantile(steps.duration_s[with_prompts], 0.999) <= 6.0 * shortest(model) + 1e-9


@pytest.mark.parametrize("spec", ["slackfit", "pretrained"])
def test_what_the_host_takes_to_launch_is_filled_with_prompts(spec: str) -> None:
    """Where the longest batch is shorter than a launch, prompts fell behind within the CUDA graphs."""
    device = load_profile("h200-vllm-mistral-7b")
    config = EngineConfig(num_blocks=56_916, max_num_seqs=256, max_batched_tokens=8192, async_scheduling=True)
    requests = Workload(rate=10.0, num_requests=400, lengths="openchat_sharegpt4").generate(0)
    fast, slow = (
        summarize(simulate(resolve(spec), requests, model, config)).ttft for model in (device, device.eager(0.034))
    )
    assert 6.0 * 0.00475 < 0.034
    assert slow.mean < 1.25 * fast.mean
    assert slow.p99 < 1.5 * fast.p99


@pytest.mark.parametrize("spec", ["slackfit", "pretrained"])
@pytest.mark.parametrize("rate", [1.0, 3.0])
def test_batches_are_long_enough_to_be_worth_it(spec: str, rate: float) -> None:
    """A vLLM on a CPU: a few tokens are dear, 1200 cost little more, so six batches of one token are far too short."""
    table = ((1, 0.0018), (4, 0.0025), (12, 0.0055), (32, 0.0099), (60, 0.0129), (1212, 0.0168), (2048, 0.084))
    device = LatencyModel(0.0, 0.0, 0.0, 0.0, 0.0, per_read=1.8e-7, any_chunk=6e-4, query_tile=256, table=table)
    config = EngineConfig(num_blocks=20_000, max_num_seqs=64, async_scheduling=True)
    requests = Workload(rate=rate, num_requests=200, lengths="openchat_sharegpt4").generate(0)
    found, other = (summarize(simulate(resolve(each), requests, device, config)) for each in (spec, "sarathi"))
    assert found.slo_attainment == 1.0
    assert found.ttft.mean < other.ttft.mean


def test_prompts_and_decodes_go_apart_where_together_takes_longer() -> None:
    free, dear = DEVICE, DEVICE.mixed(8.0)
    together, _ = _shares(_steps("slackfit", free))
    apart, prompts = _shares(_steps("slackfit", dear))
    assert together > 0.9
    assert apart < 0.1
    assert prompts > 0.2
    assert _shares(_steps("slackfit:phases=exclusive", free))[0] == 0.0
    assert _shares(_steps("slackfit:phases=mixed", dear))[0] > 0.9


@pytest.mark.parametrize(("ratio", "rate"), [(2.5, 1.5), (8.0, 1.2)])
def test_apart_strict_users_keep_their_deadline_and_more_requests_their_goals(ratio: float, rate: float) -> None:
    model, requests = DEVICE.mixed(ratio), Workload(rate=rate, num_requests=600).generate(0)
    apart, mixed, slai = (
        summarize(simulate(baselines.make(spec), requests, model))
        for spec in ("slackfit", "slackfit:phases=mixed", "slai")
    )
    for tier in apart.tiers:
        assert tier.itl.p99 < {"strict": 0.1}.get(tier.name, 0.5)
    assert apart.slo_attainment > max(mixed.slo_attainment, slai.slo_attainment)


def test_durations_are_learned_for_each_kind_of_batch() -> None:
    """A profile without the cost of mixing: batches of decodes are as predicted, those with prompts are not."""
    requests = Workload(arrivals="burst", num_requests=60, lengths="fixed:4000,40").generate(0)
    spec = f"slackfit:profile={DEVICE.name},longest=3.5,slack=1000"
    steps = simulate(baselines.make(spec), requests, DEVICE.mixed(3.0), log_steps=True).steps
    assert steps is not None
    late = slice(len(steps.batches) // 3, 2 * len(steps.batches) // 3)
    with_prompts = np.array([bool((batch[:, 2] == 1).any()) for batch in steps.batches[late]])
    assert with_prompts.sum() > 20
    assert np.median(steps.duration_s[late][with_prompts]) == pytest.approx(3.5 * SHORTEST_S, rel=0.1)


def test_a_short_newcomer_overtakes_a_started_prompt() -> None:
    requests = Requests.create([0.0, 0.15], [6000, 100], [2, 2], tiers=(Tier("only", 0.5, 1.0),))
    found = simulate(baselines.make("slackfit"), requests, DEVICE)
    assert found.ledger["first_token"][1] < found.ledger["first_token"][0]


def test_with_ageing_a_long_prompt_is_not_overtaken_for_ever() -> None:
    arrival, prompt = [0.0, *(0.1 * k for k in range(300))], [6000, *[1100] * 300]
    requests = Requests.create(arrival, prompt, [2] * 301, tiers=(Tier("only", 1.0, 0.5),))
    order = {}
    for ageing in (0.0, 1000.0, 1e8):
        found = simulate(baselines.make(f"slackfit:ageing={ageing}"), requests, DEVICE)
        order[ageing] = int((found.ledger["first_token"] < found.ledger["first_token"][0]).sum())
    assert order[0.0] == 300  # behind everybody
    # 4900 tokens of difference are 4.9 s of waiting, in which 49 arrive.
    assert 30 < order[1000.0] <= 50
    assert order[1e8] <= 1  # first come first served


def test_ageing_changes_nothing_where_nobody_waits() -> None:
    requests = Workload(rate=0.1, num_requests=50).generate(0)
    plain, aged = (simulate(baselines.make(f"slackfit:ageing={a}"), requests, DEVICE) for a in (0, 1000))
    assert (plain.ledger["first_token"] == aged.ledger["first_token"]).all()


def test_a_batch_may_end_with_a_finished_prompt() -> None:
    """200 tokens and then 6000: without `close` the short prompt waits for a longest batch, with it for its own."""
    requests = Requests.create([0.0, 0.0], [200, 6000], [2, 2], tiers=(Tier("only", 1.0, 0.5),))
    late, soon = (
        simulate(baselines.make(f"slackfit:close={c}"), requests, DEVICE).ledger["first_token"] for c in (0, 1)
    )
    assert late[0] == pytest.approx(6.0 * SHORTEST_S, abs=0.002)
    assert soon[0] == pytest.approx(0.0244771, abs=1e-6)  # overhead + 200 tokens + attention
    assert 0.0 < soon[1] - late[1] < 0.0077 + 0.001  # at the cost of one more overhead


def test_a_batch_is_not_ended_where_that_costs_others_more() -> None:
    """18 prompts behind: as many overheads of 7.64 ms are more than the 0.11 s that the first user would save."""
    requests = Requests.create([0.0] * 19, [200, *[6000] * 18], [2] * 19, tiers=(Tier("only", 1.0, 0.5),))
    first = simulate(baselines.make("slackfit:close=1"), requests, DEVICE).ledger["first_token"][0]
    assert first == pytest.approx(6.0 * SHORTEST_S, abs=0.002)


@pytest.mark.parametrize(("until", "batches"), [(0.3, 6.0), (0.4, 1.08)])
def test_no_batch_ends_early_beyond_a_share_of_the_seats(until: float, batches: float) -> None:
    """One of three seats is taken by a decode when 200 and 6000 tokens come."""
    requests = Requests.create([0.0, 1.0, 1.0], [10, 200, 6000], [200, 2, 2], tiers=(Tier("only", 1.0, 0.5),))
    policy = baselines.make(f"slackfit:close=1,close_until={until}")
    found = simulate(policy, requests, DEVICE, EngineConfig(max_num_seqs=3)).ledger["first_token"]
    assert (found[1] - 1.0) / SHORTEST_S == pytest.approx(batches, abs=0.02)


def test_decodes_wait_while_they_have_slack_and_run_where_memory_is_short() -> None:
    """Beside a queue of prompts a relaxed decode is held for a part of its slack; with few blocks all decodes run."""
    requests = Workload(rate=4.0, num_requests=200, lengths="fixed:2000,200").generate(0)
    gaps = {}
    for blocks in (14_000, 3_000):
        found = simulate(baselines.make("slackfit"), requests, DEVICE, EngineConfig(num_blocks=blocks))
        gaps[blocks] = summarize(found).itl
    assert gaps[14_000].p90 > 0.15
    assert gaps[14_000].p99 < 0.5
    assert gaps[3_000].p99 < 6.1 * SHORTEST_S


TIGHT = (Tier("tight", 0.05, 0.05), Tier("middle", 0.15, 0.2), Tier("loose", 0.8, 1.0))


@pytest.mark.parametrize("spec", ["slackfit", "slackfit:tuned", "pretrained"])
def test_any_number_of_tiers_keep_their_deadlines(spec: str) -> None:
    """No constant of seconds: batches take a share of the tightest deadline among those who decode."""
    requests = Workload(rate=1.6, num_requests=600, tiers=TIGHT).generate(0)
    for tier, of in zip(summarize(simulate(resolve(spec), requests, DEVICE)).tiers, TIGHT, strict=True):
        assert tier.itl.p99 < of.tbt_s


def test_a_deadline_that_no_batch_can_keep_does_not_count() -> None:
    """With 20 ms between tokens, less than the shortest batch, batches are as long as without that tier's deadline."""
    tiers = (Tier("hopeless", 0.05, 0.02), Tier("relaxed", 0.95, 0.5))
    some, none = (
        summarize(
            simulate(baselines.make("slackfit"), Workload(rate=1.8, num_requests=600, tiers=t).generate(0), DEVICE)
        )
        for t in (tiers, (Tier("relaxed", 1.0, 0.5),))
    )
    assert some.ttft.p50 == pytest.approx(none.ttft.p50, rel=0.05)


def test_where_all_decodes_take_too_long_for_a_deadline_they_take_turns() -> None:
    """So many long decodes that a batch of all of them takes 0.1 s: strict users are in time all the same."""
    requests = Workload(rate=2.1, num_requests=1200).generate(0)
    seats = EngineConfig(num_blocks=56_000, max_num_seqs=256)
    ours, slai = (summarize(simulate(baselines.make(spec), requests, DEVICE, seats)) for spec in ("slackfit", "slai"))
    late = {name: [tier.itl.p99 for tier in report.tiers] for name, report in (("ours", ours), ("slai", slai))}
    assert late["ours"][0] < 0.09
    assert late["ours"][1] < 0.5
    assert late["slai"][0] > 0.1
    assert ours.slo_attainment > slai.slo_attainment


def test_while_seats_are_short_batches_get_shorter_and_all_decodes_run() -> None:
    requests = Workload(rate=3.0, num_requests=250, lengths="fixed:200,300").generate(0)
    quick = load_profile(f"{DEVICE.name}:speed=4")
    gaps, served = {}, {}
    for seats in (128, 24):
        report = summarize(simulate(baselines.make("slackfit"), requests, quick, EngineConfig(max_num_seqs=seats)))
        gaps[seats], served[seats] = report.itl.p90, report.e2el.p50
    vllm = summarize(simulate(baselines.make("vllm_v1"), requests, quick, EngineConfig(max_num_seqs=24)))
    assert gaps[24] < 0.03
    assert served[24] < 1.2 * vllm.e2el.p50


def test_tuned_settings_are_named_after_their_workload() -> None:
    assert baselines.make("slackfit:tuned") == baselines.make("slackfit:tuned=poisson")
    assert baselines.make("slackfit:tuned").spec != "slackfit"
    with pytest.raises(InputError, match=r"expected one of the tuned settings .*, got 'slackfit:tuned=nowhere'"):
        baselines.make("slackfit:tuned=nowhere")


@pytest.mark.parametrize(
    "settings",
    [
        "limit=0",
        "longest=0",
        "strict_limit=0.08",
        "slack=-1",
        "memory_limit=-1",
        "eager_from=nan",
        "ageing=-1",
        "close=nan",
        "close_until=0",
        "profile=none",
    ],
)
def test_bad_parameters_are_refused(settings: str) -> None:
    with pytest.raises(InputError, match=r"expected|no parameter any more: limit is a share"):
        baselines.make(f"slackfit:{settings}")
