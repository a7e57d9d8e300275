"""The improper mixture: draws with the odds that it was given, learns to avoid a bad arm, repeats exactly."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import baselines
from agents.learning.learned.bundle import Bundle
from agents.learning.learned.load import load_policy
from agents.learning.learned.mixture import draw
from agents.learning.search.static_mixture import MixtureConfig, learn_mixture, shares, static_mixture
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.runs.simulate import simulate
from llmsched_env import Allocation

TINY = MixtureConfig(arms=("sarathi", "fastertransformer"), rates=(1.0,), requests=60, pairs=4, updates=3, workers=1)
DEVICE = load_profile("rtx6000ada-mistral-7b")


def test_arms_are_drawn_with_the_odds_of_softmax() -> None:
    theta = np.array([0.0, 1.0, -1.0, 2.0])
    drawn = np.bincount([draw(theta, k) for k in range(20_000)], minlength=4) / 20_000
    assert drawn == pytest.approx(shares(theta), abs=0.01)


def test_a_mixture_that_always_draws_one_arm_is_that_baseline() -> None:
    requests = Workload(rate=1.6, num_requests=80).generate(0)
    policy = static_mixture(TINY.env(), np.array([40.0, 0.0]))
    mixed, plain = (simulate(p, requests, DEVICE) for p in (policy, baselines.make("sarathi")))
    assert (mixed.ledger["first_token"] == plain.ledger["first_token"]).all()
    assert (mixed.ledger["completed"] == plain.ledger["completed"]).all()


def test_an_arm_that_makes_people_wait_is_avoided_and_the_search_repeats_exactly(tmp_path: Path) -> None:
    logs = []
    for workers in (1, 2):
        config = replace(TINY, run_dir=tmp_path / str(workers), workers=workers)
        folder = learn_mixture(config, lambda line: None)
        rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
        logs.append([[row[0], *row[2:]] for row in rows])
    assert logs[0] == logs[1]
    assert float(logs[0][-1][2]) > 0.6  # the share of sarathi
    learned = load_policy(tmp_path / "1").bundle
    assert learned.sampled
    assert shares(learned.layers[0][1].astype(float))[0] == pytest.approx(float(logs[0][-1][2]), rel=1e-4)
    with pytest.raises(InputError, match="already holds a run"):
        learn_mixture(replace(TINY, run_dir=tmp_path / "1"), lambda line: None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": ("slai",)}, "arms: expected at least two baselines, got slai"),
        ({"pairs": 0}, "pairs: expected a whole number >= 1, got 0"),
        ({"spread": 0.0}, "spread: expected a number > 0"),
        ({"seed": -1}, "seed: expected 0"),
    ],
)
def test_fields_are_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(TINY, **fields)  # type: ignore[arg-type]


def test_only_a_mixture_can_be_sampled() -> None:
    bundle = static_mixture(TINY.env(), np.zeros(2)).bundle
    parts = {**vars(bundle), "env": replace(bundle.env, action=Allocation())}
    parts["layers"] = ((np.zeros((18, 0), np.float32), np.zeros(18, np.float32)),)
    with pytest.raises(InputError, match="sampled: expected a mixture"):
        Bundle(**parts)
