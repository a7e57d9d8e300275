"""The environment of a router: `simulate_cluster` decision by decision, alone or side by side, bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from baselines import routers
from engine.cluster.features import REPLICA_NAMES, REQUEST_NAMES
from engine.cluster.record import ClusterRecord
from engine.cluster.seats import Kind
from engine.cluster.simulate import simulate_cluster
from engine.demand.requests import Requests
from engine.demand.workload import Workload
from engine.errors import InputError
from engine.runs.driving import PolicyError
from llmsched_env import (
    REWARD_TERMS,
    Drain,
    LLMSchedRouterEnv,
    LLMSchedRouterVectorEnv,
    RewardWeights,
    RouterConfig,
    observation_names,
    split,
)
from llmsched_env.inputs import ResetNeeded
from llmsched_env.reward import NUM_TERMS, add_totals
from tests.engine.test_cluster import differences

NAME = "LLMSchedRouter-v0"
EQUAL = RouterConfig(replicas=3, policy="sarathi", workload=Workload(rate=7.0, num_requests=60))
KINDS = (
    Kind(count=2),
    Kind(profile="rtx6000ada-mistral-7b:speed=3", server="num_blocks=2x,max_num_seqs=64"),
    Kind(policy="slai"),
)
MIXED = replace(EQUAL, fleet=KINDS, rates=(6.0, 12.0), ages=(0.0, 0.7), reward=RewardWeights(starvation=1.0))
CUT = replace(MIXED, horizon_s=3.0)
WEIGHTS = RewardWeights(ttft=1.0, tbt=0.5, e2e=0.25, goodput=2.0, starvation=1.0, starvation_s=0.1)


def route(env: LLMSchedRouterEnv, spec: str, seed: int | None) -> dict[str, Any]:
    """Play an episode with a router; sums of rewards, terms and seconds, and the last info."""
    env.reset(seed=seed)
    router = routers.make(spec)
    memory, done = router.memory(len(env.config.seats)), False
    found: dict[str, Any] = {"reward": 0.0, "elapsed_s": 0.0, "terms": dict.fromkeys(REWARD_TERMS, 0.0)}
    while not done:
        _, reward, terminated, truncated, info = env.step(router.route(env.view, memory))
        done = terminated or truncated
        found["reward"] += reward
        found["elapsed_s"] += info["elapsed_s"]
        for name, value in info["reward_terms"].items():
            found["terms"][name] += value
    return info | found | {"terminated": terminated}


def outside(env: LLMSchedRouterEnv, spec: str, requests: Any) -> ClusterRecord:
    """The same episode by `simulate_cluster`."""
    replicas = env.config.build()
    seed = int(env.view.row[0].seed)
    router = routers.make(spec)
    return simulate_cluster(router, replicas.policies, requests, replicas.models, replicas.configs, seed=seed)


@pytest.mark.parametrize("config", [{}, {"fleet": KINDS, "drains": (Drain(1, 1e6),)}])
def test_checkers_are_clean(config: Any) -> None:
    env: Any = gymnasium.make(NAME, disable_env_checker=True, **config).unwrapped
    check_env(env, skip_render_check=True)
    sb3_check_env(env)


def test_both_faces_are_registered_on_one_id() -> None:
    scalar: Any = gymnasium.make(NAME, replicas=3)
    vector: Any = gymnasium.make_vec(NAME, num_envs=2, vectorization_mode="vector_entry_point", replicas=3)
    assert isinstance(vector.unwrapped, LLMSchedRouterVectorEnv)
    assert vector.single_observation_space == scalar.observation_space
    assert vector.single_action_space == scalar.action_space
    assert vector.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP
    first, infos = vector.reset(seed=0)
    assert first in vector.observation_space
    assert infos["action_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert len(observation_names(3)) == len(set(observation_names(3))) == first.shape[1]


@pytest.mark.parametrize("spec", ["jsq", "power_of_d:d=3,age=0.7", "llumnix:age=0.7", "max_weight"])
@pytest.mark.parametrize("config", [EQUAL, MIXED], ids=["equal", "mixed"])
def test_a_router_does_in_the_environment_what_it_does_in_a_cluster(config: RouterConfig, spec: str) -> None:
    env = LLMSchedRouterEnv(config, ages=(routers.make(spec).report_s,))
    requests = config.workload.generate(4)
    env.reset(seed=1, options={"requests": requests})
    router = routers.make(spec)
    memory, done = router.memory(len(config.seats)), False
    while not done:
        done = env.step(router.route(env.view, memory))[2]
    inside, alone = env.record(), outside(env, spec, requests)
    assert inside.replica.tolist() == alone.replica.tolist()
    assert [differences(a, b) for a, b in zip(inside.records, alone.records, strict=True)] == [[]] * len(config.seats)


@pytest.mark.parametrize("config", [EQUAL, MIXED, CUT, replace(EQUAL, max_steps=17)])
def test_rows_of_a_vector_are_single_environments(config: RouterConfig) -> None:
    rows, steps = 3, 150
    vector, singles = LLMSchedRouterVectorEnv(rows, config), [LLMSchedRouterEnv(config) for _ in range(rows)]
    vector.action_space.seed(3)
    first, _ = vector.reset(seed=11)
    assert [env.reset(seed=11 + e)[0].tolist() for e, env in enumerate(singles)] == first.tolist()
    ended = 0
    for _ in range(steps):
        actions = vector.action_space.sample()
        observation, reward, terminated, truncated, infos = vector.step(actions)
        for e, env in enumerate(singles):
            own, own_reward, *own_end, info = env.step(actions[e])
            assert (own_reward, own_end) == (reward[e], [terminated[e], truncated[e]])
            assert info["elapsed_s"] == infos["elapsed_s"][e]
            assert [*info["reward_terms"].values()] == infos["reward_terms"][e].tolist()
            if any(own_end):
                ended += 1
                assert infos["final_obs"][e].tolist() == own.tolist()
                assert repr(infos["final_info"]["report"][e]) == repr(info["report"])
                own, info = env.reset()
            assert own.tolist() == observation[e].tolist()
            assert info["action_mask"].tolist() == infos["action_mask"][e].tolist()
    assert ended >= 2 * rows


def test_identical_replicas_in_another_order_permute_the_lines_only() -> None:
    """Replica order[j] of one environment gets what replica j of the other one gets."""
    order = np.array([2, 0, 1])
    here, there = LLMSchedRouterEnv(EQUAL, ages=(0.4,)), LLMSchedRouterEnv(EQUAL, ages=(0.4,))
    one, other = here.reset(seed=5)[0], there.reset(seed=5)[0]
    rng, done, differs = np.random.default_rng(0), False, 0
    while not done:
        (mine, request), (theirs, same) = split(one, 3), split(other, 3)
        assert mine.shape == (3, len(REPLICA_NAMES))
        assert request.shape == (len(REQUEST_NAMES),)
        assert theirs[order].tolist() == mine.tolist()
        assert same.tolist() == request.tolist()
        differs += one.tolist() != other.tolist()
        j = int(rng.integers(3))
        one, reward, done, _, _ = here.step(j)
        other, theirs_reward, *_ = there.step(order[j])
        assert theirs_reward == pytest.approx(reward)  # sums over replicas in another order
    assert differs > 50
    assert here.report()["mean_ttft_ms"] == there.report()["mean_ttft_ms"]


@pytest.mark.parametrize("config", [EQUAL, MIXED, CUT, replace(MIXED, max_steps=25)])
def test_terms_of_an_episode_are_numbers_of_its_report(config: RouterConfig) -> None:
    env = LLMSchedRouterEnv(config, reward=WEIGHTS)
    began = float(env.reset(seed=8) and env.view.row[0].now)
    played = route(env, "jsq", 8)
    report, terms = played["report"], played["terms"]
    assert terms["ttft"] == pytest.approx(-report["mean_ttft_ms"] / 1000.0 * report["arrived"])
    assert played["elapsed_s"] == pytest.approx(report["duration_s"] - began)
    assert played["reward"] == pytest.approx(report["return"])
    assert {name: report[f"reward_{name}"] for name in REWARD_TERMS} == pytest.approx(terms)
    assert played["terminated"] == (config in (EQUAL, MIXED))


@pytest.mark.parametrize("config", [EQUAL, MIXED])
def test_terms_of_an_episode_are_the_totals_of_the_replicas_runs(config: RouterConfig) -> None:
    env = LLMSchedRouterEnv(config, reward=WEIGHTS)
    played, tiers = route(env, "round_robin", 9), config.workload.tiers
    total, record = np.zeros(NUM_TERMS), env.record()
    for one in record.records:
        add_totals(one, one, np.array([tier.weight for tier in tiers]), WEIGHTS.vector(), 1.0, total)
    assert list(played["terms"].values()) == pytest.approx(total.tolist())
    assert played["terms"]["starvation"] < 0.0
    fleet = record.fleet()
    assert played["terms"]["e2e"] == pytest.approx(-(fleet.ledger["completed"] - fleet.request["arrival"]).sum())
    assert played["report"]["completed"] == len(fleet.request)


def test_waits_are_counted_while_a_batch_runs() -> None:
    """Three requests for one replica within its first batch: a step costs what those who wait in it wait."""
    requests = Requests.create([0.0, 0.001, 0.003], [100, 100, 100], [1, 1, 1])
    env = LLMSchedRouterEnv(EQUAL, workload=Workload(num_requests=3))
    env.reset(options={"requests": requests})
    rewards = [env.step(0)[1] for _ in range(3)]
    assert rewards[:2] == pytest.approx([-1 * 0.001, -2 * 0.002])
    first = env.record().records[0].ledger["first_token"]
    assert sum(rewards) == pytest.approx(-(first - requests.arrival).sum())


def test_a_draining_replica_gets_nothing() -> None:
    env = LLMSchedRouterEnv(EQUAL, drains=[{"replica": 1, "from_s": 2.0}])
    _, info = env.reset(seed=0)
    done, now, refused = False, float(env.view.row[0].now), 0
    while not done:
        assert info["action_mask"].tolist() == [1, int(now < 2.0), 1]
        assert env.action_masks().tolist() == [True, now < 2.0, True]
        if now >= 2.0:
            with pytest.raises(InputError, match="no replica that drains, got 1"):
                env.step(1)
            refused += 1
        _, _, done, _, info = env.step(0 if now >= 2.0 else 1)
        now += info["elapsed_s"]
    assert refused > 10
    assert info["report"]["completed"] == 60


def test_old_reports_are_seen_as_old_as_they_are() -> None:
    age = REQUEST_NAMES.index("age")
    fresh, old = LLMSchedRouterEnv(EQUAL), LLMSchedRouterEnv(EQUAL, ages=(2.0,))
    for env, oldest in ((fresh, False), (old, True)):
        env.reset(seed=2)
        ages = [split(env.step(0)[0], 3)[1][age] for _ in range(40)]
        assert (max(ages) > 0.0) == oldest


def test_a_fleet_comes_from_a_file_as_the_command_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "mixed.yml"
    path.write_text("replicas:\n  - count: 2\n  - profile: h100-mistral-7b\n    policy: sarathi\n", encoding="utf-8")
    config = LLMSchedRouterEnv(fleet=str(path)).config
    assert [seat.policy for seat in config.seats] == ["slai", "slai", "sarathi"]
    assert [seat.profile.name for seat in config.seats][2] == "h100-mistral-7b"
    assert RouterConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"no_such_field": 1},
        {"replicas": 0},
        {"policy": "magic"},
        {"profile": "no-such-card"},
        {"server": "no_limit=3"},
        {"fleet": [{"count": 0}]},
        {"fleet": "no-such-file.yml"},
        {"ages": ()},
        {"ages": (-1.0,)},
        {"rates": (0.0,)},
        {"drains": [{"replica": 4}]},
        {"replicas": 1, "drains": [{"replica": 0}]},
        {"prediction": "refined"},
        {"reward": {"fun": 1.0}},
        {"reward": "some_module:function"},
        {"render_mode": "ansi"},
        {"server": "num_blocks=2"},
    ],
)
def test_bad_options_are_one_clear_line(changes: Any) -> None:
    with pytest.raises(InputError) as error:
        LLMSchedRouterEnv(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("action", [3, -1, 1.0, "jsq", [0, 1], None, True, np.array([0.0])])
def test_what_is_no_replica_is_refused_and_nothing_happens(action: Any) -> None:
    env = LLMSchedRouterEnv(EQUAL)
    with pytest.raises(ResetNeeded):
        env.step(0)
    first, _ = env.reset(seed=0)
    with pytest.raises(InputError) as error:
        env.step(action)
    assert "\n" not in str(error.value)
    assert env.clusters.outcome.observation[0].tolist() == first.tolist()
    assert env.view.row[0].index == 0


def test_a_policy_that_stalls_is_named(tmp_path: Path) -> None:
    path = tmp_path / "idle.py"
    path.write_text(STALLS, encoding="utf-8")
    env = LLMSchedRouterEnv(EQUAL, policy=f"{path}:Idle")
    env.reset(seed=0)
    for _ in range(59):
        env.step(0)
    with pytest.raises(PolicyError, match="replica 0: policy 'idle' planned nothing"):
        env.step(0)
    with pytest.raises(ResetNeeded):
        env.step(0)


STALLS = '''
from dataclasses import dataclass

from engine import Policy, kernel_of


@dataclass(frozen=True)
class Idle(Policy):
    """Plans nothing."""

    name = "idle"


@kernel_of(Idle)
def _plan(view, memory, plan):
    pass
'''
