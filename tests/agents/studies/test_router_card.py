"""The card of the learned router: rivals are tuned for their kind of fleet, losses come first; the bound's search."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from agents.learning.learned.router import load_router
from agents.learning.learned.router_bundle import RouterBundle
from agents.learning.search.router_worlds import Trial, World, mean_of, mean_ttft_s, served
from agents.policies import pretrained_folder
from agents.routers import PRETRAINED_ROUTER
from agents.studies import router_bound, router_card
from agents.studies.router_card import Result, markdown, tuned
from baselines import routers

WORLDS = [World(2, mixed, 1.5, "slackfit:tuned", age) for mixed in (False, True) for age in (0.0, 1.0)]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A learned router that goes where the fewest prompts wait."""
    layer = np.array([[-1.0]], np.float32), np.zeros(1, np.float32)
    RouterBundle((layer,), np.zeros(1), np.ones(1), ("prompt_work",)).save(tmp_path / "small")
    return tmp_path / "small"


def test_rivals_are_tuned_for_each_age_and_kind_of_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(trials: list[Trial], workers: int) -> np.ndarray:
        """A weight of 4 is best in front of mixed fleets, 0 in front of equal ones, with old reports."""
        found = []
        for trial in trials:
            wanted = "output_weight=4" if trial.world.is_mixed and trial.world.age else "output_weight=0"
            found.append(1.0 if wanted in str(trial.router) else 2.0)
        return np.array(found)

    monkeypatch.setattr(router_card, "measure", measure)
    best = tuned(WORLDS, 10, 1)
    assert len(best) == len(router_card.GRIDS) * 4
    assert best["least_tokens", 1.0, True].startswith("least_tokens:output_weight=4")
    assert best["least_tokens", 0.0, True].startswith("least_tokens:output_weight=0")
    assert best["lmetric", 1.0, False] == "lmetric"


def test_a_verdict_is_a_paired_interval_without_zero() -> None:
    ours, theirs = np.array([0.9, 1.9, 2.9]), np.array([1.0, 2.0, 3.0])
    won = Result.of(WORLDS[0], "jsq", "jsq", ours, theirs)
    assert won.verdict == "wins"
    assert won.relative == pytest.approx(-0.05)
    assert Result.of(WORLDS[0], "jsq", "jsq", theirs, ours).verdict == "loses"
    assert Result.of(WORLDS[0], "jsq", "jsq", np.array([0.9, 2.1, 3.0]), theirs).verdict == "ties"


def test_losses_come_first(bundle: Path) -> None:
    ours = np.array([1.0, 1.01, 0.99])
    results = [
        Result.of(WORLDS[0], "max_weight", "max_weight", ours, 1.1 * ours),
        Result.of(WORLDS[3], "lmetric", "lmetric", ours, 0.8 * ours),
    ]
    card = {"router": "x", "command": "y", "seeds": 3, "others": []}
    text = markdown(card, results, [])
    assert "Loses in 1 of 2 comparisons:" in text
    assert text.index("| 2 mixed 1:3, 1.5, slackfit:tuned | 1 s old | `lmetric` |") < text.index("| fresh | equal |")
    assert "| fresh | equal | `max_weight` | 1 / 0 / 0 | -9.1 % | -9.1 %, -9.1 % |" in text


def test_the_command_writes_the_card(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(router_card, "REPLICAS", (2,))
    monkeypatch.setattr(router_card, "LOADS", (1.5,))
    flags = f"--router {bundle} --others {bundle} --requests 20 --seeds 2 --policies slackfit:tuned --workers 1"
    monkeypatch.setattr(sys, "argv", ["router_card", *flags.split()])
    router_card.main()
    card = json.loads((bundle / "card.json").read_text())
    assert len(card["results"]) == 2 * len(router_card.AGES) * len(router_card.GRIDS)
    assert card["results"] == card["results_of_others"][0]
    assert card["results"][0]["world"]["policy"] == "slackfit:tuned"
    assert "| small | " in (bundle / "CARD.md").read_text()


def test_a_search_that_knows_the_trace_finds_what_is_no_worse() -> None:
    trial = Trial("least_tokens", World(2, False, 2.0, "slackfit:tuned", 0.0), 60, 3)
    usual = served(routers.make("least_tokens"), trial)
    first, later = (router_bound.improved(usual.replica, trial, tries) for tries in (0, 60))
    assert first == mean_of(usual)
    assert later < first


def test_the_bound_is_a_row_for_each_load(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(router_bound, "LOADS", (1.5, 2.0))
    flags = f"--router {bundle} --replicas 2 --requests 20 --tries 3 --seeds 2 --workers 1"
    monkeypatch.setattr(sys, "argv", ["router_bound", *flags.split()])
    router_bound.main()
    assert capsys.readouterr().out.count("| 1.5, slackfit:tuned |") == 1


def test_the_shipped_router_has_its_card_and_wins_where_reports_are_old() -> None:
    folder = pretrained_folder(PRETRAINED_ROUTER)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert len(card["results"]) == 2 * 54 * len(router_card.GRIDS)
    lost = [one for one in card["results"] if one["verdict"] == "loses"]
    assert all(one["interval"][0] > 0.0 for one in lost)
    assert f"Loses in {len(lost)} of {len(card['results'])} comparisons" in (folder / "CARD.md").read_text()
    trial = Trial(load_router(folder).bundle, World(4, True, 1.7, "slackfit:tuned", 1.0), 800, 7)
    assert mean_ttft_s(trial) < 0.6 * mean_ttft_s(trial._replace(router="least_tokens"))
