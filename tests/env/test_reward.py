"""Rewards add up to numbers of the report, and rank policies as the report does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import baselines
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.simulate import simulate
from llmsched_env import REWARD_TERMS, EnvConfig, LLMSchedEnv, Mixture, RewardWeights
from llmsched_env.reward import NUM_TERMS, add_totals

ARMS = ("slai", "sarathi", "vllm", "orca", "ltr")
CONFIG = EnvConfig(
    workload=Workload(rate=1.9, num_requests=200),
    action=Mixture(arms=ARMS),
    prediction="rank:tau=0.6",
)


def play(arm: Any, seed: Any, config: Any = CONFIG) -> Any:
    env = LLMSchedEnv(config)
    env.reset(seed=seed)
    sums = dict.fromkeys(REWARD_TERMS, 0.0)
    terminated, total, elapsed = False, 0.0, 0.0
    while not terminated:
        _, reward, terminated, _, info = env.step(arm)
        total += reward
        elapsed += info["elapsed_s"]
        for name, value in info["reward_terms"].items():
            sums[name] += value
    return total, sums, elapsed, info["report"], env


def test_terms_sum_to_the_report() -> None:
    _, sums, elapsed, report, env = play(1, 3)
    view, hidden = env.fleet.servers.visible, env.fleet.servers.hidden
    ttft = (hidden.ledger[0]["first_token"] - view.request[0]["arrival"]).sum()
    latency = (hidden.ledger[0]["completed"] - view.request[0]["arrival"]).sum()
    first = view.request[0]["arrival"].min()
    assert sums["ttft"] == pytest.approx(-ttft)
    assert sums["e2e"] == pytest.approx(-latency)
    assert sums["goodput"] == hidden.tier[0]["good"].sum()
    assert sums["tbt"] == pytest.approx(-hidden.tier[0]["late_sum"].sum())
    assert elapsed == pytest.approx(report["duration_s"] - first)


@pytest.mark.parametrize("arm", range(len(ARMS)))
def test_one_arm_all_the_time_is_that_baseline(arm: Any) -> None:
    env = LLMSchedEnv(CONFIG)
    env.reset(seed=5)
    requests = env.fleet.draw(np.random.default_rng(5))
    env.reset(options={"requests": requests})
    terminated = False
    while not terminated:
        terminated = env.step(arm)[2]
    record = simulate(baselines.make(ARMS[arm]), requests, load_profile(CONFIG.profile), CONFIG.engine)
    ledger = env.fleet.servers.hidden.ledger[0]
    assert np.array_equal(ledger["completed"], record.ledger["completed"])
    assert np.array_equal(ledger["first_token"], record.ledger["first_token"])


def test_return_ranks_policies_as_the_report_does() -> None:
    """Mean return over the seeds orders the arms exactly as their mean TTFT where no gap is late."""
    returns, ttft = [], []
    for arm in range(4):
        runs = [play(arm, seed) for seed in range(2)]
        returns.append(np.mean([sums["ttft"] for _, sums, *_ in runs]))
        ttft.append(np.mean([report["mean_ttft_ms"] for *_, report, _ in runs]))
    assert np.argsort(-np.array(returns)).tolist() == np.argsort(ttft).tolist()


@pytest.mark.parametrize("skip", [False, True])
def test_terms_of_an_episode_are_the_totals_of_the_run(skip: bool) -> None:
    """Each term, starvation included, adds up to that of the same run outside, however long the steps are."""
    weights = RewardWeights(ttft=1.0, tbt=0.5, e2e=0.25, goodput=2.0, starvation=1.0, starvation_s=1.0)
    config = replace(CONFIG, reward=weights, skip_decode_only=skip)
    env = LLMSchedEnv(config)
    requests = env.fleet.draw(np.random.default_rng(4))
    env.reset(options={"requests": requests})
    total, sums, terminated = 0.0, np.zeros(NUM_TERMS), False
    while not terminated:
        _, reward, terminated, _, info = env.step(2)
        total += reward
        sums += list(info["reward_terms"].values())
    record = simulate(baselines.make(ARMS[2]), requests, load_profile(config.profile), config.engine)
    found, tier_weight = np.zeros(NUM_TERMS), np.array([t.weight for t in requests.tiers])
    add_totals(record, record, tier_weight, weights.vector(), 1.0, found)
    waited = record.ledger["first_scheduled"] - record.request["arrival"]
    assert found[REWARD_TERMS.index("starvation")] == pytest.approx(-np.maximum(waited - 1.0, 0.0).sum())
    assert (found != 0.0).all()
    np.testing.assert_allclose(sums, found, rtol=1e-9)
    assert total == pytest.approx(float(weights.vector()[:NUM_TERMS] @ found))
