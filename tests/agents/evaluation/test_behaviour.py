"""What a policy is seen doing: by hand on a toy, and the signs of policies that hold decodes and overtake."""

from typing import Any

import numpy as np
import pytest

import baselines
from agents.evaluation import behaviour
from agents.evaluation.behaviour import behave
from agents.evaluation.looks import BINS, Behaviour
from engine.config import EngineConfig
from engine.demand.predictions import predict
from engine.demand.requests import DEFAULT_TIERS, Requests, Tier
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel, load_profile
from engine.runs.record import Record
from engine.runs.simulate import simulate
from engine.runs.steps import StepLog
from engine.server.policy import Policy
from tests.toys import constant

TIGHT = EngineConfig(num_blocks=1500)
DEVICE = load_profile("rtx6000ada-mistral-7b")
BUSY = Workload(rate=1.7, num_requests=600).generate(0)


@pytest.fixture(scope="module")
def seen() -> dict[str, Behaviour]:
    return {
        name: behave(baselines.make(name), BUSY, DEVICE, EngineConfig()) for name in ("sarathi", "slai", "slackfit")
    }


def test_two_requests_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 1 s: A's prompt; B's beside a token of A; a token of each. Gaps are half of the deadline."""
    monkeypatch.setattr(behaviour, "FROM_S", 0.0)
    requests = Requests.create([0.0, 0.5], [16, 16], [3, 2], tiers=(Tier("only", 1.0, 2.0),))
    found = behave(baselines.make("sarathi"), requests, constant(1.0), EngineConfig(num_blocks=100))
    assert found.iterations == (2, *[0] * 9)
    assert found.batch_s == (1.0, *[None] * 9)
    assert found.held_share == (0.0, *[None] * 9)
    assert found.deadline_share == {"only": 0.5}
    assert found.overtaken_share is None  # never two prompts at once


def test_first_come_first_served_overtakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviour, "FROM_S", 0.0)
    requests = Requests.create([0.0, 0.0, 0.0], [900, 800, 100], [1, 1, 1])
    config = EngineConfig(num_blocks=1000)
    orders = ("token_budget=100,order=fcfs", "token_budget=100,order=spf")
    fcfs, spf = (behave(baselines.make(f"sarathi:{o}"), requests, constant(1.0), config) for o in orders)
    assert fcfs.overtaken_share == 0.0
    # 100 tokens of the last while two wait before it (share 1), then 800 of the second before the first (share 1).
    assert spf.overtaken_share == 1.0


def test_slai_and_slackfit_hold_decodes_and_sarathi_does_not(seen: dict[str, Behaviour]) -> None:
    shares = {name: [x for x in found.held_share if x is not None] for name, found in seen.items()}
    assert max(shares["sarathi"]) < 0.02
    assert max(shares["slai"]) > 0.5
    assert max(shares["slackfit"]) > 0.5


def test_gaps_stay_within_deadlines_and_orders_differ(seen: dict[str, Behaviour]) -> None:
    for found in seen.values():
        assert all(0.0 < (share or 0.0) < 1.0 for share in found.deadline_share.values())
    assert (seen["sarathi"].overtaken_share or 0.0) < 0.1 < (seen["slackfit"].overtaken_share or 0.0)


@pytest.mark.parametrize("name", ["sarathi", "slai", "vllm", "ltr", "slackfit", "rad"])
@pytest.mark.parametrize("config", [EngineConfig(), TIGHT, TIGHT.replace(swap_bandwidth=25e9)])
def test_compiled_sums_equal_those_of_the_log_in_python(name: str, config: EngineConfig) -> None:
    policy = baselines.make(name)
    requests = predict(BUSY, policy.channel, 0) if policy.channel else BUSY
    found, expected = behave(policy, requests, DEVICE, config), _behave_in_python(policy, requests, DEVICE, config)
    assert vars(found).keys() - {"policy", "load"} == expected.keys()
    for key in ("iterations", "batch_s", "held_share"):
        assert list(getattr(found, key)) == expected[key]
    assert found.overtaken_share is not None
    assert found.deadline_share == pytest.approx(expected["deadline_share"], rel=1e-12)
    assert found.overtaken_share == pytest.approx(expected["overtaken_share"], rel=1e-12)


@pytest.mark.parametrize("config", [EngineConfig(num_blocks=700), EngineConfig.reference().replace(num_blocks=700)])
def test_gaps_are_those_that_the_engine_counts(monkeypatch: pytest.MonkeyPatch, config: EngineConfig) -> None:
    """With evictions too: an evicted request's next token ends a gap that began with its latest one."""
    monkeypatch.setattr(behaviour, "FROM_S", 0.0)
    monkeypatch.setattr(behaviour, "UNTIL_S", np.inf)
    record = simulate(baselines.make("vllm"), BUSY, DEVICE, config)
    found = behave(baselines.make("vllm"), BUSY, DEVICE, config)
    assert record.row["evictions"][0] > 0
    for k, tier in enumerate(BUSY.tiers):
        mean = record.tier["gap_sum"][k] / record.gaps[k].sum()
        assert found.deadline_share[tier.name] == pytest.approx(mean / tier.tbt_s, rel=1e-9)


def test_a_tier_without_requests_has_no_share() -> None:
    tiers = (*DEFAULT_TIERS, Tier("nobody", 0.0, 1.0))
    requests = BUSY.replace(tiers=tiers)
    assert behave(baselines.make("slai"), requests, DEVICE, EngineConfig()).deadline_share["nobody"] is None


def _behave_in_python(policy: Policy, requests: Requests, model: LatencyModel, config: EngineConfig) -> dict[str, Any]:
    """The same numbers, an iteration at a time."""
    requests = requests.head(max(1, int(np.searchsorted(requests.arrival, behaviour.UNTIL_S))))
    record = simulate(policy, requests, model, config, horizon_s=behaviour.UNTIL_S, log_steps=True)
    steps = record.steps
    assert steps is not None
    prompts = np.array([int(batch[batch[:, 2] == 1, 1].sum()) for batch in steps.batches], np.int64)
    decodes = np.array([int(np.count_nonzero(batch[:, 2] == 0)) for batch in steps.batches], np.int64)
    seen = (steps.start_s >= behaviour.FROM_S) & (prompts > 0)
    use = np.minimum((steps.used_blocks / config.num_blocks * BINS).astype(np.int64), BINS - 1)[seen]
    present = np.maximum(_decoding(record, steps.start_s), decodes)[seen]
    some = present > 0
    shares, overtaken = _gaps_and_overtaken(record, steps)
    held = 1.0 - decodes[seen][some] / present[some]
    count = np.bincount(use, minlength=BINS)
    return {
        "iterations": count.tolist(),
        "batch_s": _means(steps.duration_s[seen], use, count),
        "held_share": _means(held, use[some], np.bincount(use[some], minlength=BINS)),
        "deadline_share": {name: float(np.mean(values)) if values else None for name, values in shares.items()},
        "overtaken_share": overtaken,
    }


def _means(values: np.ndarray, part: np.ndarray, count: np.ndarray) -> list[float | None]:
    sums = np.bincount(part, values, minlength=BINS)
    return [float(total / n) if n else None for total, n in zip(sums, count, strict=True)]


def _decoding(record: Record, times: np.ndarray) -> np.ndarray:
    """Requests between the end of their prompt and of their output at these times, int64[times] (evicted ones too)."""
    began, ended = (record.ledger[name] for name in ("prompt_done", "completed"))
    began, ended = np.sort(began[began >= 0.0]), np.sort(ended[ended >= 0.0])
    return np.asarray(np.searchsorted(began, times, side="right") - np.searchsorted(ended, times, side="right"))


class _Server:
    """How far each request is, from what the log says."""

    def __init__(self, record: Record) -> None:
        self.requests, self.emits = record.requests, record.config.prompt_emits
        self.length = {i: int(n) for i, n in enumerate(self.requests.prompt)}
        self.left, self.tokens = dict(self.length), dict.fromkeys(self.length, 0)
        self.last: dict[int, float] = {}

    def give_up(self, evicted: list[int], dropped: list[int]) -> None:
        self.left |= {i: self.length[i] for i in evicted} | dict.fromkeys(dropped, 0)

    def prompts(self, now: float) -> list[int]:
        return [i for i, left in self.left.items() if left and self.requests.arrival[i] <= now]

    def run(self, batch: np.ndarray, end: float) -> list[tuple[int, float]]:
        """Gaps that end here, with their requests."""
        gaps = []
        for i, tokens, is_prefill in batch.tolist():
            if is_prefill:
                self.left[i] -= tokens
                if self.left[i] or not self.emits:
                    continue
            if i in self.last:
                gaps.append((i, end - self.last[i]))
            self.last[i] = end
            self.length[i] += 1
        return gaps


def _gaps_and_overtaken(record: Record, steps: StepLog) -> tuple[dict[str, list[float]], float | None]:
    server, tiers = _Server(record), record.requests.tiers
    shares: dict[str, list[float]] = {tier.name: [] for tier in tiers}
    overtaken, tokens = 0.0, 0
    for k, batch in enumerate(steps.batches):
        start = float(steps.start_s[k])
        server.give_up(steps.evicted[k], steps.dropped[k])
        prompts = server.prompts(start)
        if start >= behaviour.FROM_S and len(prompts) > 1:
            for i, n, _ in (entry for entry in batch.tolist() if entry[2]):
                overtaken += n * sum(other < i for other in prompts) / (len(prompts) - 1)
                tokens += n
        for i, gap in server.run(batch, start + float(steps.duration_s[k])):
            tier = tiers[record.requests.tier[i]]
            if start >= behaviour.FROM_S:
                shares[tier.name].append(gap / tier.tbt_s)
    return shares, overtaken / tokens if tokens else None
