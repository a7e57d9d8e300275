"""What a policy is seen doing: by hand on a toy, and the signs of policies that hold decodes and overtake."""

from typing import Any

import pytest

import baselines
from agents.evaluation import behaviour
from agents.evaluation.behaviour import behave
from engine.config import EngineConfig
from engine.latency import load_profile
from engine.requests import Requests, Tier
from engine.workload import Workload
from tests.toys import constant

DEVICE = load_profile("rtx6000ada-mistral-7b")
BUSY = Workload(rate=1.7, num_requests=600).generate(0)


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return {
        name: behave(baselines.make(name), BUSY, DEVICE, EngineConfig()) for name in ("sarathi", "slai", "slackfit")
    }


def test_two_requests_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 1 s: A's prompt; B's beside a token of A; a token of each. Gaps are half of the deadline."""
    monkeypatch.setattr(behaviour, "FROM_S", 0.0)
    requests = Requests.create([0.0, 0.5], [16, 16], [3, 2], tiers=(Tier("only", 1.0, 2.0),))
    found = behave(baselines.make("sarathi"), requests, constant(1.0), EngineConfig(num_blocks=100))
    assert found["iterations"] == [2, *[0] * 9]
    assert found["batch_s"] == [1.0, *[None] * 9]
    assert found["held_share"] == [0.0, *[None] * 9]
    assert found["deadline_share"] == {"only": 0.5}
    assert found["overtaken_share"] is None  # never two prompts at once


def test_first_come_first_served_overtakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviour, "FROM_S", 0.0)
    requests = Requests.create([0.0, 0.0, 0.0], [900, 800, 100], [1, 1, 1])
    config = EngineConfig(num_blocks=1000)
    orders = ("token_budget=100,order=fcfs", "token_budget=100,order=spf")
    fcfs, spf = (behave(baselines.make(f"sarathi:{o}"), requests, constant(1.0), config) for o in orders)
    assert fcfs["overtaken_share"] == 0.0
    # 100 tokens of the last while two wait before it (share 1), then 800 of the second before the first (share 1).
    assert spf["overtaken_share"] == 1.0


def test_slai_and_slackfit_hold_decodes_and_sarathi_does_not(seen: dict[str, Any]) -> None:
    shares = {name: [x for x in found["held_share"] if x is not None] for name, found in seen.items()}
    assert max(shares["sarathi"]) < 0.02
    assert max(shares["slai"]) > 0.5
    assert max(shares["slackfit"]) > 0.5


def test_gaps_stay_within_deadlines_and_orders_differ(seen: dict[str, Any]) -> None:
    for found in seen.values():
        assert all(0.0 < share < 1.0 for share in found["deadline_share"].values())
    assert seen["sarathi"]["overtaken_share"] < 0.1 < seen["slackfit"]["overtaken_share"]
