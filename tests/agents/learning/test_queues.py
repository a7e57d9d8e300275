"""The trainer for queues: groups on common arrivals, advantages, the actor that is exported, exact resume."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.learning.learned.load import load_policy, policy_of
from agents.learning.learned.policy import LearnedPolicy
from agents.learning.ppo.checkpoint import checkpoints
from agents.learning.ppo.queues import learner
from agents.learning.ppo.queues.advantages import balanced, clock, differential, less_others, timed_advantages
from agents.learning.ppo.queues.build import build_queue_model, export_levels, setting_of
from agents.learning.ppo.queues.config import QueueConfig
from agents.learning.ppo.queues.critic import fit
from agents.learning.ppo.queues.diagnosis import (
    Gradient,
    at_rate,
    estimated_gradients,
    offset_gradient,
    reference_gradient,
    variants,
)
from agents.learning.ppo.queues.learner import QueuePPO
from agents.learning.ppo.queues.multipliers import Multipliers
from agents.learning.ppo.queues.worlds import shared_out, worlds_of
from agents.learning.ppo.rollout import TimedRolloutBuffer
from agents.learning.ppo.train import CHECKPOINTS, train
from agents.learning.ppo.train_config import TrainConfig
from agents.learning.teachers import as_taught, teacher
from engine.demand.tiers import parse_tiers
from engine.demand.workload import Workload
from engine.errors import InputError
from llmsched_env import EnvConfig
from llmsched_env.actions import Slackfit
from llmsched_env.observation import OBSERVATION_SIZE
from tests.agents.learning.test_train import StopAfter, assert_same, learner_state
from tests.agents.learning.training import small

ENV = EnvConfig(
    action=Slackfit(hold=2),
    skip_decode_only=True,
    rates=(1.0, 2.0),
    workload=Workload(rate=1.0, num_requests=120, lengths="fixed:900,12"),
)
QUEUE = QueueConfig(group_size=2, burn_in=10, critic_steps=4, critic_batch=16, warm_up=1)


def queue_run(run_dir: Path, **changes: Any) -> TrainConfig:
    """Two worlds, two rows in each, 8 decisions in a rollout."""
    settings = {
        "env": ENV,
        "queue": QUEUE,
        "gae_lambda": 1.0,
        "n_steps": 8,
        "batch_size": 32,
        "teacher": "slackfit:tuned",
        **changes,
    }
    return small(run_dir, total_timesteps=256, eval_requests=20, **settings)


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> QueuePPO:
    return build_queue_model(queue_run(tmp_path), 1e-2)


def test_worlds_are_rates_or_scenarios() -> None:
    worlds = worlds_of(replace(ENV, rates=(1.0, 2.0, 2.0)))
    assert [(w.name, w.groups) for w in shared_out(worlds, 6)] == [("1", 2), ("2", 4)]
    env = EnvConfig.from_dict({"scenarios": ["poisson:rate=1", "poisson:rate=3@h100-mistral-7b"]})
    found = worlds_of(env)
    assert [w.place for w in found] == [0, 1]
    assert [w.env.profile for w in found] == ["rtx6000ada-mistral-7b", "h100-mistral-7b"]
    with pytest.raises(InputError, match="expected a group of rows for each of 2 worlds, got 1"):
        shared_out(worlds_of(ENV), 1)


def test_a_world_with_more_work_than_it_can_do_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_queue_model(queue_run(tmp_path, env=replace(ENV, rates=(2.0, 50.0))), 1e-2)
    assert [(world.name, world.groups) for world in model.servers.worlds] == [("2", 2)]
    assert "50: left out" in capsys.readouterr().err
    with pytest.raises(InputError, match="expected one that keeps up"):
        build_queue_model(queue_run(tmp_path, env=replace(ENV, rates=(50.0,))), 1e-2)


def test_traces_that_end_before_the_burn_in_are_one_line(tmp_path: Path) -> None:
    short = replace(ENV, workload=replace(ENV.workload, num_requests=10))
    with pytest.raises(InputError, match=r"^queue\.burn_in: expected less than the 10 requests of a trace, got 10$"):
        build_queue_model(queue_run(tmp_path, env=short), 1e-2)


def test_one_who_always_waits_is_no_reason_to_leave_a_world_out(tmp_path: Path) -> None:
    """Each prompt is in work as long as until the next one comes: one of the twelve that count, and no more later."""
    regular = Workload(arrivals="gamma", cv=0.1, num_requests=22, lengths="fixed:6000,12")
    run = queue_run(tmp_path, env=replace(ENV, workload=regular, rates=(0.9,)))
    assert setting_of(run).watched[0].growth == 0.0


def test_scenarios_with_devices_of_their_own(tmp_path: Path) -> None:
    scenarios = ["poisson:rate=2,lengths=fixed:900,12", "poisson:rate=8,lengths=fixed:900,12@h100-mistral-7b"]
    env = EnvConfig.from_dict({**ENV.to_dict(), "rates": [], "scenarios": scenarios})
    folder = train(queue_run(tmp_path / "run", env=env))
    assert isinstance(load_policy(folder / "best"), LearnedPolicy)


def test_rows_of_a_group_differ_only_by_what_they_choose(model: QueuePPO) -> None:
    servers = model.servers
    servers.reset(seed=3)
    servers.new_round(True)
    arrivals = servers.fleet.servers.visible.request["arrival"]
    assert (arrivals[0] == arrivals[1]).all()
    assert not (arrivals[0] == arrivals[2]).all()
    same = np.tile(np.array([4.2, 3.8, 1.6]), (4, 1))
    for _ in range(5):
        observations, _, terminated, truncated, _ = servers.step(same)
        assert not (terminated | truncated).any()
    assert (observations[0] == observations[1]).all()
    assert not (observations[0] == observations[2]).all()
    other = same.copy()
    other[1] = 0.0
    differs = [not (seen[0] == seen[1]).all() for seen in (servers.step(other)[0] for _ in range(25))]
    assert any(differs)
    again = servers.new_round(True)
    assert (again[0] == again[1]).all()


def test_rows_go_on_for_ever(model: QueuePPO) -> None:
    servers = model.servers
    servers.reset(seed=0)
    digests = set()
    for _ in range(40):
        servers.new_round(True)
        digests.add(servers.fleet.servers.visible.request["arrival"][3].tobytes())
        for _ in range(8):
            servers.step(np.full((4, 3), 2.0))
            row = servers.fleet.servers.visible.row[:, 0]
            assert (row["next_arrival"] < 120).all()
    assert len(digests) > 2


def test_traces_that_are_too_short_are_one_line(tmp_path: Path) -> None:
    env = replace(ENV, workload=replace(ENV.workload, num_requests=20))
    with pytest.raises(InputError, match=r"env.workload.num_requests: expected at least \d+ for 1, got 20"):
        build_queue_model(queue_run(tmp_path, env=env), 1e-2)


def test_what_all_rows_of_a_group_share_is_no_advantage() -> None:
    rng = np.random.default_rng(0)
    elapsed = rng.uniform(0.5, 1.5, (50, 4))
    times = clock(elapsed)[:-1]
    shared = np.sin(times / 20.0)
    inside = times <= times[-1].min()  # behind the end of a row there is only its last number
    assert np.abs(less_others(shared, times, 4)[inside]).max() < 1e-2
    own = np.array([1.0, 0.0, 0.0, -1.0])
    left = less_others(shared + own, times, 4)
    assert left[:40].mean(0) == pytest.approx([4 / 3, 0.0, 0.0, -4 / 3], abs=1e-2)


def test_estimates_are_those_of_semi_markov_gae() -> None:
    rng = np.random.default_rng(1)
    rewards, values = rng.normal(size=(2, 6, 3))
    last = rng.normal(size=3)
    buffer: Any = TimedRolloutBuffer.__new__(TimedRolloutBuffer)
    buffer.buffer_size, buffer.n_envs, buffer.gae_lambda = 6, 3, np.exp(-0.5 / 7.0)
    buffer.rewards, buffer.values = rewards, values
    buffer.discounts, buffer.episode_starts = np.full((6, 3), np.exp(-0.5 / 40.0)), np.zeros((6, 3))
    buffer.advantages = np.zeros((6, 3))
    buffer.compute_returns_and_advantage(th.tensor(last), np.zeros(3, bool))
    discount = np.full((6, 3), np.exp(-0.5 / 40.0))
    found = timed_advantages(rewards, values, last, discount, discount * np.exp(-0.5 / 7.0))
    assert found == pytest.approx(buffer.advantages, abs=1e-6)
    whole = timed_advantages(rewards, values, last, np.ones((6, 3)), np.ones((6, 3)))
    assert whole[0] == pytest.approx(rewards.sum(0) + last - values[0])


def test_a_row_that_costs_the_mean_earns_nothing() -> None:
    elapsed = np.array([[1.0, 2.0]])
    cost, mean = np.array([[3.0, 6.0]]), np.array([3.0, 3.0])
    assert (differential(cost, elapsed, mean, np.ones(2)) == 0.0).all()
    assert (differential(cost + 1.0, elapsed, mean, np.array([1.0, 2.0])) * 10.0 == [[-1.0, -0.5]]).all()


def test_worlds_weigh_alike() -> None:
    rng = np.random.default_rng(2)
    drawn, world = rng.normal(5.0, 1.0, (200, 3)) * [1.0, 1.0, 10.0], np.array([0, 0, 1])
    found = balanced(drawn, world, 2, False)
    assert found.std() == pytest.approx(1.0)
    assert found[:, :2].mean() == pytest.approx(0.0, abs=1e-9)
    assert found[:, 2].std() / found[:, :2].std() == pytest.approx(20.0, rel=0.2)
    alike = balanced(drawn, world, 2, True)
    assert alike[:, 2].std() / alike[:, :2].std() == pytest.approx(2.0)


def test_worlds_have_a_clock_of_their_own(tmp_path: Path) -> None:
    scenarios = [
        "poisson:rate=2,lengths=fixed:900,12",
        "poisson:rate=4,lengths=fixed:900,12@rtx6000ada-mistral-7b:speed=2",
    ]
    env = EnvConfig.from_dict({**ENV.to_dict(), "rates": [], "scenarios": scenarios})
    paces = build_queue_model(queue_run(tmp_path, env=env), 1e-2).pace
    assert paces[0] == pytest.approx(2.0 * paces[1])
    assert (build_queue_model(queue_run(tmp_path), 1e-2).pace == 1.0).all()


def test_a_late_gap_costs_more_while_there_are_too_many() -> None:
    multipliers = Multipliers(2, limit=0.1, rate=0.5)
    for _ in range(3):
        multipliers.ascend(np.array([30.0, 4.0]), np.array([100.0, 50.0]))
    assert multipliers.value.tolist() == [1.5, 0.0]
    assert multipliers.cost(np.array([[2.0, 7.0]])).tolist() == [3.0]
    multipliers.ascend(np.array([0.0, 10.0]), np.array([100.0, 0.0]))
    assert multipliers.value.tolist() == [1.0, 0.0]


def test_constraints_enter_the_cost_and_the_checkpoint(tmp_path: Path) -> None:
    env = replace(ENV, workload=replace(ENV.workload, tiers=parse_tiers(["name=fast,share=1,tbt=0.02,ttft=2"])))
    config = queue_run(tmp_path / "run", env=env, queue=replace(QUEUE, late_limit=0.01))
    arrays = learner_state(train(config))
    assert arrays["learner.multipliers"][0] > 0.0


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_the_exported_policy_rounds_the_actor(tmp_path: Path, hidden: tuple[int, ...]) -> None:
    config = queue_run(tmp_path, queue=replace(QUEUE, actor=hidden, averaging=0.0))
    model = build_queue_model(config, 1e-2)
    net: Any = model.policy.action_net
    with th.no_grad():
        net.weight.copy_(th.randn(net.weight.shape, generator=th.Generator().manual_seed(0)))
    model.policy.averaged.update_parameters(model.policy.actor_parts)
    policy = policy_of(export_levels(model, config, ""), "learned")
    rng = np.random.default_rng(0)
    seen = rng.normal(1.0, 1.0, (200, OBSERVATION_SIZE)).astype(np.float32)
    whole = np.zeros((200, *model.observation_space.shape), np.float32)  # type: ignore[misc]
    whole[:, :OBSERVATION_SIZE] = seen
    with th.no_grad():
        levels = model.policy.get_distribution(th.from_numpy(whole)).mode().numpy()
    wanted = np.clip(np.rint(levels), 0, np.array(ENV.action.sizes) - 1)
    clear = (np.abs(levels - np.floor(levels) - 0.5) > 1e-3).all(1)
    assert (policy.choose(seen)[clear] == wanted[clear]).all()
    assert len(np.unique(wanted)) > 3


def test_first_policy_is_the_teacher(tmp_path: Path) -> None:
    config = queue_run(tmp_path)
    policy = policy_of(export_levels(build_queue_model(config, 1e-2), config, ""), "learned")
    seen = np.random.default_rng(0).normal(size=(50, OBSERVATION_SIZE)).astype(np.float32)
    assert (policy.choose(seen) == teacher("slackfit:tuned", as_taught("slackfit:tuned", ENV))(seen)).all()


def test_half_of_a_group_explores_against_the_other(model: QueuePPO) -> None:
    model.policy.draw_noise(4, 2)
    noise: Any = model.policy.action_dist
    first = noise.exploration_matrices[::2]
    assert (first == -noise.exploration_matrices[1::2]).all()
    assert (first != 0.0).all()


def test_actor_does_not_see_what_the_critic_sees(model: QueuePPO) -> None:
    seen = th.zeros(2, *model.observation_space.shape)  # type: ignore[misc]
    seen[1, OBSERVATION_SIZE:] = 1.0
    with th.no_grad():
        levels, values = model.policy.get_distribution(seen).mode(), model.policy.predict_values(seen)
    assert (levels[0] == levels[1]).all()
    assert values[0] != values[1]


def test_training_learns_and_exports(tmp_path: Path) -> None:
    folder = train(queue_run(tmp_path / "run"))
    arrays = learner_state(folder)
    assert np.abs(arrays["policy.action_net.weight"]).max() > 0.0
    for name in ("best", "final"):
        assert isinstance(load_policy(folder / name), LearnedPolicy)


def test_interrupted_and_resumed_is_the_same_as_in_one_go(tmp_path: Path) -> None:
    changes = {"checkpoint_every": 32, "eval_every": 0}
    train(queue_run(tmp_path / "whole", **changes))
    config = queue_run(tmp_path / "parts", **changes)
    with pytest.raises(KeyboardInterrupt):
        train(config, StopAfter(37))
    train(replace(config, resume=True))
    assert_same(learner_state(tmp_path / "parts"), learner_state(tmp_path / "whole"))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What a run has logged, but for times."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("time/")]
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in tags}


def test_threads_do_not_change_what_is_learned(tmp_path: Path) -> None:
    changes = {"checkpoint_every": 96, "eval_every": 64, "queue": replace(QUEUE, actor=(8,), late_limit=0.1)}
    one, two = (queue_run(tmp_path / name, **changes) for name in ("one", "two"))
    train(one)
    with pytest.raises(KeyboardInterrupt):
        train(replace(two, row_threads=3), StopAfter(37))
    train(replace(two, row_threads=2, resume=True))
    assert_same(learner_state(tmp_path / "one"), learner_state(tmp_path / "two"))
    logged, again = scalars(tmp_path / "one"), scalars(tmp_path / "two")
    assert logged == again
    assert len(logged["train/value_loss"]) == 8


def test_the_critic_is_fitted_while_the_next_rollout_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit waits for a step of the next rollout: it would wait for ever if it came before or after."""
    steps, fitted = threading.Event(), []

    def waiting(*arguments: Any) -> float:
        fitted.append(steps.wait(60.0))
        return fit(*arguments)

    model = build_queue_model(queue_run(tmp_path, row_threads=2), 1e-2)
    env: Any = model.get_env()
    _, callback = model._setup_learn(1, None)
    monkeypatch.setattr(learner, "fit", waiting)
    model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
    model.train()
    monkeypatch.setattr(model, "note_step", lambda *_: steps.set())
    model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
    assert fitted == [True]


@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_that_are_not_finite_stop_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    config = queue_run(tmp_path / "run", checkpoint_every=32, eval_every=0, row_threads=threads)
    before = QueuePPO.estimate

    def broken(self: QueuePPO, buffer: Any, last_values: th.Tensor, dones: np.ndarray) -> None:
        before(self, buffer, last_values, dones)
        if self.num_timesteps > 100:
            buffer.returns[:] = np.nan

    monkeypatch.setattr(QueuePPO, "estimate", broken)
    with pytest.raises(InputError, match=r"train: expected finite networks, got .* after 128 decisions"):
        train(config)
    monkeypatch.setattr(QueuePPO, "estimate", before)
    assert checkpoints(config.run_dir / CHECKPOINTS)
    train(replace(config, resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 3}, "n_envs: expected a multiple of queue.group_size = 3, got 4"),
        ({"features": ("kv",)}, "queue.features: expected names among"),
        ({"group_size": 1}, "queue.paired: expected false where a group has one row"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        queue_run(tmp_path, queue=replace(QUEUE, **changes))


def test_gradient_by_offsets_is_that_of_the_surrogate(model: QueuePPO) -> None:
    env: Any = model.get_env()
    _, callback = model._setup_learn(1, None)
    model.collect_rollouts(env, callback, model.rollout_buffer, model.n_steps)
    gradient = offset_gradient(model)
    buffer, net = model.rollout_buffer, model.policy.action_net.get_parameter("weight")
    seen, actions = th.from_numpy(buffer.observations.reshape(32, -1)), th.from_numpy(buffer.actions.reshape(32, -1))
    step, found = 1e-2, []
    for head in range(len(gradient)):
        likelihood = []
        for sign in (step, -step):
            with th.no_grad():
                net[head, 0] += sign
                likelihood.append(model.policy.evaluate_actions(seen, actions)[1].numpy().astype(np.float64))
                net[head, 0] -= sign
        found.append(-(buffer.advantages.ravel() * (likelihood[0] - likelihood[1])).mean() / (2.0 * step))
    assert gradient == pytest.approx(found, rel=2e-2, abs=1e-3)


def test_gradients_that_agree_have_a_cosine_of_one() -> None:
    rng = np.random.default_rng(0)
    truth = Gradient(np.array([1.0, -2.0, 0.5]) + rng.normal(0.0, 0.01, (30, 3)))
    of_mean, of_one, error = Gradient(3.0 * truth.single[::-1]).cosine(truth)
    assert of_mean == pytest.approx(1.0)
    assert of_one == pytest.approx(1.0, abs=1e-3)
    assert error < 1e-3
    assert Gradient(-truth.single).cosine(truth)[0] == pytest.approx(-1.0)


def test_reference_gradient_is_of_the_cost(tmp_path: Path) -> None:
    config = at_rate(queue_run(tmp_path, env=replace(ENV, action=Slackfit(hold=1))), 3.0)
    found = reference_gradient(config, 4, lambda done, total: None)
    assert found.single.shape == (4, 3)
    assert np.isfinite(found.single).all()
    assert np.abs(found.mean).max() > 0.0
    assert len(list(estimated_gradients(config, 1, 2))) == 2
    assert set(variants(config)) >= {"recipe", "plain"}
