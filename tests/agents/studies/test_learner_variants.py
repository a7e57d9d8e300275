"""The learners that `agents.studies.learner_variants` adds, and that it plays traces as `simulate` does."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import CallbackList

from agents.learning.learned.bundle import Bundle
from agents.learning.learned.load import policy_of
from agents.learning.ppo.vec_env import SB3VecEnv
from agents.learning.teachers import teacher
from agents.studies.ablations import METRICS
from agents.studies.learner_variants import FEATURES, AnchoredPPO, RequestAttention, build, play, settings
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.runs.metrics import summarize
from engine.runs.simulate import simulate
from llmsched_env.observation import OBSERVATION_SIZE
from llmsched_env.vector import LLMSchedVectorEnv


def test_both_variants_train_and_compare(tmp_path: Path) -> None:
    """Next to no training of each; what is trained is not trained again."""
    script = [
        sys.executable,
        "-m",
        "agents.studies.learner_variants",
        "--out",
        str(tmp_path),
        "--seeds",
        "1",
        "--short",
    ]
    script += ["--traces", "2", "--requests", "60"]
    root = Path(__file__).parent.parent
    first, again = (subprocess.run(script, cwd=root, capture_output=True, text=True, check=False) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert (first.stderr.count("trained:"), again.stderr.count("trained:")) == (2, 0)
    assert again.stdout == first.stdout
    assert first.stdout.count("\n| ") == 2
    figures = json.loads((tmp_path / "learner_variants.json").read_text())
    assert set(figures) == {"attention", "kl"}


def test_the_penalty_is_in_rewards_before_returns_are_computed() -> None:
    """The same rollout with and without it: rewards differ by beta x log-ratio, returns by its discounted sum."""
    model = build("kl", replace(settings(0, True), n_envs=64, batch_size=64, gae_lambda=1.0))
    assert isinstance(model, AnchoredPPO)
    found = []
    for beta in (0.0, 0.5):
        model.set_random_seed(0)
        model.env.seed(0)  # type: ignore[union-attr]
        model.anchor(beta)
        with th.no_grad():
            model.origin.action_net.bias[0] += 1.0
        model.env.training = False  # type: ignore[union-attr]
        model._setup_learn(1)
        callback = CallbackList([])
        callback.init_callback(model)
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)  # type: ignore[arg-type]
        buffer: Any = model.rollout_buffer
        found.append((buffer.rewards.copy(), buffer.returns.copy(), buffer.discounts.copy(), buffer.episode_starts))
    (plain, worth, discounts, starts), (rewards, returns, _, _) = found
    penalty = plain - rewards
    assert (penalty != 0.0).all()
    assert not starts[1:].any()
    owed = np.zeros(64)
    for t in reversed(range(model.n_steps)):
        owed = penalty[t] + discounts[t] * owed
        assert worth[t] - returns[t] == pytest.approx(owed, abs=1e-3)


def test_attention_does_not_see_the_order_of_requests() -> None:
    space = spaces.Box(-1.0, 1.0, (OBSERVATION_SIZE + 6 * FEATURES,), np.float32)
    attention, seen = RequestAttention(space), th.rand(3, OBSERVATION_SIZE + 6 * FEATURES)
    seen[:, -FEATURES:] = 0.0
    aggregates, requests = seen[:, :OBSERVATION_SIZE], seen[:, OBSERVATION_SIZE:].reshape(3, 6, FEATURES)
    turned = th.cat([aggregates, requests.flip(1).flatten(1)], 1)
    th.testing.assert_close(attention(turned), attention(seen))
    th.testing.assert_close(attention(seen[:, :-FEATURES]), attention(seen))


def test_a_played_trace_has_the_figures_of_a_simulated_one() -> None:
    """One constant choice, slackfit:tuned's, as a policy of `simulate` and in the environment."""
    config = settings(0, True)
    choose = teacher(config.teacher, config.env)
    sizes = config.env.action.sizes
    bias = np.zeros(sum(sizes), np.float32)
    bias[np.cumsum([0, *sizes[:-1]]) + choose(np.zeros((1, 1)))[0]] = 1.0
    weight = np.zeros((len(bias), OBSERVATION_SIZE), np.float32)
    profile = load_profile(config.env.profile)
    bundle = Bundle(
        layers=((weight, bias),),
        activation="tanh",
        mean=np.zeros(OBSERVATION_SIZE),
        std=np.ones(OBSERVATION_SIZE),
        clip=10.0,
        codec=config.env.action.codec.params(profile),
        env=config.env,
    )
    requests = Workload(rate=1.8, num_requests=256).generate(0)
    report = summarize(simulate(policy_of(bundle, "constant"), requests, profile)).to_dict()
    played = play(SB3VecEnv(LLMSchedVectorEnv(2, config.env)), choose, [requests, requests])
    for metric in METRICS:
        assert [p[metric] for p in played] == pytest.approx([report[metric]] * 2, rel=1e-12)
