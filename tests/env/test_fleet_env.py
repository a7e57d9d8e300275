"""Router and schedulers turn by turn: with the decisions of a router and a policy it is `simulate_cluster` of these."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import baselines
from baselines import routers
from engine.cluster.seats import Kind
from engine.cluster.simulate import simulate_cluster
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.errors import InputError
from engine.extras import missing
from llmsched_env import (
    REWARD_TERMS,
    Allocation,
    Drain,
    FleetConfig,
    LLMSchedFleetEnv,
    Mixture,
    RewardWeights,
    Slackfit,
)
from tests.engine.test_cluster import differences
from tests.env.test_router_env import STALLS

NAME = "LLMSchedFleet-v0"
WEIGHTS = RewardWeights(ttft=1.0, tbt=0.5, e2e=0.25, goodput=2.0, starvation=1.0, starvation_s=0.1)
ARMS = Mixture(arms=("sarathi", "slai"))
CONFIG = FleetConfig(replicas=3, workload=Workload(rate=7.0, num_requests=50), action=ARMS, reward=WEIGHTS)
MIXED = replace(
    CONFIG, fleet=(Kind(count=2), Kind(profile="rtx6000ada-mistral-7b:speed=3", server="num_blocks=2x")), ages=(0.7,)
)


def play(env: LLMSchedFleetEnv, spec: str, batch: Any, options: Any = None) -> dict[str, Any]:
    """Play an episode with a router and one and the same choice for every batch; sums and the last info."""
    router, places = routers.make(spec), len(env.config.seats)
    (observation, _), memory, done = env.reset(seed=4, options=options), router.memory(places), False
    found: dict[str, Any] = {"reward": 0.0, "elapsed_s": 0.0, "turns": np.zeros(places + 1, int)}
    found["terms"] = dict.fromkeys(REWARD_TERMS, 0.0)
    while not done:
        assert observation in env.observation_space
        turn = int(observation["turn"])
        found["turns"][turn] += 1
        assert not observation["route" if turn else "schedule"].any()
        assert observation["schedule" if turn else "route"].any()
        choice = router.route(env.view, memory) if turn == 0 else 0
        observation, reward, terminated, truncated, info = env.step([choice, *batch])
        assert info["elapsed_s"] >= 0.0
        done = terminated or truncated
        found["reward"] += reward
        found["elapsed_s"] += info["elapsed_s"]
        for name, value in info["reward_terms"].items():
            found["terms"][name] += value
    return found | {"report": info["report"]}


@pytest.mark.parametrize("arm", range(len(ARMS.arms)))
@pytest.mark.parametrize("config", [CONFIG, MIXED], ids=["equal", "mixed"])
def test_a_router_and_a_policy_do_here_what_they_do_in_a_cluster(config: FleetConfig, arm: int) -> None:
    env, spec = LLMSchedFleetEnv(config), f"least_tokens:age={config.ages[0]}"
    requests = config.workload.generate(7)
    played = play(env, spec, [arm], {"requests": requests})
    policies, seats = [baselines.make(ARMS.arms[arm])] * 3, config.seats
    seed, devices = int(env.view.row[0].seed), [seat.profile for seat in seats]
    configs = [seat.config for seat in seats]
    alone = simulate_cluster(routers.make(spec), policies, requests, devices, configs, seed=seed)
    inside = env.record()
    assert inside.replica.tolist() == alone.replica.tolist()
    assert [differences(a, b) for a, b in zip(inside.records, alone.records, strict=True)] == [[], [], []]
    assert played["turns"][0] == len(requests)


@pytest.mark.parametrize("changes", [{}, {"horizon_s": 3.0}, {"max_steps": 300}])
def test_terms_of_an_episode_are_numbers_of_its_report(changes: Any) -> None:
    env = LLMSchedFleetEnv(CONFIG, **changes)
    env.reset(seed=4)
    began = float(env.view.row[0].now)
    played = play(env, "jsq", [0])
    report, terms = played["report"], played["terms"]
    assert terms["ttft"] == pytest.approx(-report["mean_ttft_ms"] / 1000.0 * report["arrived"])
    assert played["elapsed_s"] == pytest.approx(report["duration_s"] - began)
    assert played["reward"] == pytest.approx(report["return"])
    assert report["decisions"] == played["turns"].sum()
    assert (report["completed"] == 50) == (changes == {})


def test_decisions_come_in_the_order_of_time() -> None:
    """Whoever's turn it is: a replica is asked at its own clock, which no other one's has passed unasked."""
    env = LLMSchedFleetEnv(CONFIG, action=Allocation())
    observation, info = env.reset(seed=1)
    done, now, asked = False, 0.0, set()
    env.action_space.seed(2)
    while not done:
        turn = int(observation["turn"])
        asked.add(turn)
        time = float(env.clusters.outcome.now[0])
        assert time >= now
        now = time
        if turn > 0:
            rows = env.clusters.cluster(0).fleet.servers.visible.row["now"][:, 0]
            assert rows[turn - 1] == now
            assert rows.max() == now
        observation, _, done, _, info = env.step(env.action_space.sample())
    assert asked == {0, 1, 2, 3}
    assert info["report"]["completed"] == 50


@pytest.mark.parametrize("action", [Allocation(), Slackfit()])
def test_batches_of_decodes_alone_may_pass_unasked(action: Any) -> None:
    asked = play(LLMSchedFleetEnv(CONFIG, action=action), "jsq", [5, 0, 0])
    skipped = play(LLMSchedFleetEnv(CONFIG, action=action, skip_decode_only=True), "jsq", [5, 0, 0])
    assert skipped["turns"][0] == asked["turns"][0] == 50
    assert skipped["turns"].sum() < asked["turns"].sum() / 2
    assert skipped["report"]["completed"] == 50


def test_a_choice_that_leads_nowhere_at_the_end_is_replaced(tmp_path: Path) -> None:
    """A policy that plans nothing: once no request can come any more, the codec's own batches run."""
    path = tmp_path / "idle.py"
    path.write_text(STALLS, encoding="utf-8")
    config = FleetConfig(replicas=2, workload=Workload(num_requests=3), action=Mixture(arms=(f"{path}:Idle",)))
    requests = Requests.create([0.0, 0.5, 1.0], [50, 60, 70], [4, 4, 4])
    played = play(LLMSchedFleetEnv(config), "round_robin", [0], {"requests": requests})
    assert played["report"]["completed"] == 3


def test_checkers_are_clean() -> None:
    env: Any = gymnasium.make(NAME, disable_env_checker=True, workload=CONFIG.workload).unwrapped
    check_env(env, skip_render_check=True)
    sb3_check_env(env)


@pytest.mark.parametrize(
    "changes",
    [
        {"no_such_field": 1},
        {"policy": "sarathi"},
        {"fleet": [{"policy": "slai"}]},
        {"action": "magic"},
        {"action": {"name": "slackfit", "hold": 8}},
        {"action": {"name": "mixture", "arms": ("ltr",)}},
        {"drains": [{"replica": 4}]},
        {"render_mode": "ansi"},
    ],
)
def test_bad_options_are_one_clear_line(changes: Any) -> None:
    with pytest.raises(InputError) as error:
        LLMSchedFleetEnv(**changes)
    assert "\n" not in str(error.value)


def test_a_configuration_survives_a_round_trip() -> None:
    assert FleetConfig.from_dict(MIXED.to_dict()) == MIXED


@pytest.mark.parametrize("action", [[3, 0], [-1, 0], [0], [0, 0, 0], [0.0, 0], None, "jsq", 1])
def test_what_is_not_in_the_space_is_refused_and_nothing_happens(action: Any) -> None:
    env = LLMSchedFleetEnv(CONFIG)
    first, _ = env.reset(seed=0)
    with pytest.raises(InputError) as error:
        env.step(action)
    assert "\n" not in str(error.value)
    assert env.step([0, 99])[0]["turn"] == 1  # at the router's turn the other part may be anything
    with pytest.raises(InputError, match="now with a choice of"):
        env.step([0, 2])
    assert first["turn"] == 0


@pytest.mark.filterwarnings("ignore:(Agents|Observations) .* different")
@pytest.mark.filterwarnings("ignore:Environment has not defined a render")
@pytest.mark.skipif(missing("pettingzoo") is not None, reason="needs the extra pettingzoo")
def test_pettingzoo_takes_it_as_an_environment_of_turns() -> None:
    from pettingzoo.test import api_test

    from llmsched_env.routing.aec import LLMSchedFleetAEC

    few = Workload(rate=7.0, num_requests=12)
    env = LLMSchedFleetAEC(replace(CONFIG, drains=(Drain(2, 1.0),), workload=few), skip_decode_only=True)
    api_test(env, num_cycles=200)
    env.reset(seed=3)
    plain = LLMSchedFleetEnv(env.env.config)
    observation, _ = plain.reset(seed=3)
    total = 0.0
    for agent in env.agent_iter():
        seen, _, terminated, truncated, info = env.last()
        if terminated or truncated:
            env.step(None)
            continue
        turn = int(observation["turn"])
        assert agent == env.possible_agents[turn]
        assert seen.tolist() == observation["schedule" if turn else "route"].tolist()
        env.step(1 if turn else 0)
        observation, reward, *_ = plain.step([0, 1])
        assert set(env.rewards.values()) == {reward}
        total += reward
        if "report" in info:
            assert info["report"]["return"] == pytest.approx(total)
    assert env.agents == []
