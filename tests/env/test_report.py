"""The numbers of an episode are those of a report over the same run, also where it was cut off."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import baselines
from agents.learning.ppo.vec_env import SB3VecEnv
from engine.config import EngineConfig
from engine.demand.requests import Tier
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.metrics import summarize
from engine.runs.simulate import simulate
from llmsched_env import EnvConfig, LLMSchedEnv, LLMSchedVectorEnv, Mixture
from tests.toys import constant

CONFIG = EnvConfig(workload=Workload(rate=2.5, num_requests=80), action=Mixture(arms=("sarathi", "slai")))


def played(config: EnvConfig, requests: Any) -> dict[str, Any]:
    env = LLMSchedEnv(config)
    env.reset(options={"requests": requests})
    ended = False
    while not ended:
        _, _, terminated, truncated, info = env.step(0)
        ended = terminated or truncated
    return dict(info["report"])


@pytest.mark.parametrize("horizon_s", [0.0, 3.0, 12.0])
@pytest.mark.parametrize("semantics", ["default", "reference"])
def test_an_episode_has_the_numbers_of_a_report(horizon_s: float, semantics: str) -> None:
    engine = EngineConfig() if semantics == "default" else EngineConfig.reference()
    config = replace(CONFIG, horizon_s=horizon_s, engine=engine)
    requests = config.workload.generate(seed=4)
    limit = horizon_s or math.inf
    record = simulate(baselines.make("sarathi"), requests, load_profile(config.profile), config.engine, horizon_s=limit)
    report = summarize(record)
    data, found = report.to_dict(), played(config, requests)
    assert horizon_s == 0.0 or report.unfinished > 0
    expected = {
        **{key: data[key] for key in ("completed", "arrived", "iterations", "evictions")},
        **{
            key: data[key] for key in ("mean_ttft_ms", "median_ttft_ms", "p99_ttft_ms", "slo_goodput", "slo_attainment")
        },
        **{f"p99_itl_ms/{t.name}": t.to_dict()["p99_itl_ms"] for t in report.tiers},
        **{f"late_gap_share/{t.name}": t.to_dict()["late_gap_share"] for t in report.tiers},
        "duration_s": data["duration"],
        "num_requests": data["num_prompts"],
    }
    for key, value in expected.items():
        assert found[key] == value or (value is None and math.isnan(found[key])), key


def test_a_first_token_at_its_deadline_is_in_time() -> None:
    """0.7 s is rounded down where single precision holds it."""
    workload = Workload(arrivals="burst", num_requests=1, lengths="fixed:4,1", tiers=(Tier("one", 1.0, 0.5, 0.7),))
    env = LLMSchedEnv(replace(CONFIG, workload=workload), executor=constant(0.7))
    env.reset(seed=0)
    _, _, terminated, _, info = env.step(0)
    assert terminated
    assert info["report"]["median_ttft_ms"] == 700.0
    assert info["report"]["slo_attainment"] == 1.0


def test_slack_of_a_deadline_next_to_zero_is_drawn_as_a_number() -> None:
    workload = Workload(arrivals="burst", num_requests=1, lengths="fixed:4,9", tiers=(Tier("one", 1.0, 1e-310, 0.7),))
    env = LLMSchedEnv(replace(CONFIG, workload=workload), render_mode="ansi")
    env.reset(seed=0)
    for _ in range(3):
        env.step(0)
    line = env.render()
    assert "inf" not in line
    assert "nan" not in line


def test_who_still_waits_has_waited_until_now() -> None:
    config = EnvConfig(workload=Workload(arrivals="burst", num_requests=6, lengths="fixed:4000,5"))
    env = LLMSchedEnv(config, max_steps=3)
    env.reset(seed=0)
    for _ in range(3):
        info = env.step((1, 0, 0))[4]
    report = info["report"]
    assert report["completed"] == 0
    assert report["median_ttft_ms"] == report["mean_ttft_ms"] == 1000.0 * report["duration_s"] > 0.0
    assert all(math.isnan(report[f"p99_itl_ms/{tier.name}"]) for tier in config.workload.tiers)
    assert all(math.isnan(report[f"late_gap_share/{tier.name}"]) for tier in config.workload.tiers)
    assert report["slo_goodput"] == report["slo_attainment"] == 0.0


def test_every_face_has_the_same_report() -> None:
    config = replace(CONFIG, horizon_s=4.0)
    single, vector = LLMSchedEnv(config), LLMSchedVectorEnv(1, config)
    sb3 = SB3VecEnv(LLMSchedVectorEnv(1, config))
    single.reset(seed=2)
    vector.reset(seed=2)
    sb3.seed(2)
    sb3.reset()
    ended = False
    while not ended:
        *_, truncated, info = single.step(1)
        *_, infos = vector.step(np.array([1]))
        episodes = sb3.step(np.array([1]))[3]
        ended = truncated
    report = info["report"]
    assert infos["final_info"]["report"][0] == report
    assert {key: episodes[0]["episode"][key] for key in report} == report
    assert report["completed"] < report["arrived"] < report["num_requests"]
