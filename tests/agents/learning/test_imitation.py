"""The warm start: after it the network chooses as its teacher does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import baselines
from agents.learning.ppo.imitation import imitate
from agents.learning.ppo.train import build_model, learned_policy, train
from agents.learning.teachers import as_taught, teacher
from engine.demand.workload import Workload
from engine.device.latency import load_profile
from engine.errors import InputError
from engine.runs.simulate import simulate
from llmsched_env import Allocation, EnvConfig, LLMSchedEnv, Slackfit
from tests.agents.learning.training import small


@pytest.mark.parametrize(
    ("spec", "action", "expected"),
    [
        ("slackfit:slack=4,eager_from=0.5,memory_limit=0.9", "slackfit", [5, 1, 1]),
        ("sarathi", "allocation", [5, 0, 0]),
        ("sarathi:token_budget=1000,order=spf", "allocation", [7, 0, 1]),
    ],
)
def test_a_network_learns_to_choose_as_its_teacher(tmp_path: Path, spec: str, action: Any, expected: list[int]) -> None:
    config = small(tmp_path)
    config = replace(config, env=replace(config.env, action=action), teacher=spec)
    choose = teacher(spec, config.env)
    assert choose(np.zeros((1, 1), np.float32)).tolist() == [expected]
    model = build_model(config)
    found = imitate(model, choose, 20_000)
    assert found["agreement"] > 0.95
    assert np.isfinite(found["value_loss"])
    assert model.num_timesteps == 0
    policy = learned_policy(model, config)
    seen = np.zeros((4, len(policy.bundle.mean)), np.float32) + policy.bundle.mean.astype(np.float32)
    assert (policy.choose(seen) == choose(seen)).all()


@pytest.mark.parametrize("spec", ["slackfit", "slackfit:tuned", "slackfit:phases=exclusive,longest=4,ageing=2"])
def test_the_choices_of_slackfit_are_slackfit(spec: str) -> None:
    """With its settings the action makes of them what the baseline does, to the bit."""
    requests = Workload(rate=1.9, num_requests=300).generate(0)
    env = as_taught(spec, EnvConfig(action=Slackfit(), workload=Workload(num_requests=len(requests))))
    alone = simulate(baselines.make(spec), requests, load_profile(env.profile), env.engine).ledger["completed"]
    choose, played = teacher(spec, env), LLMSchedEnv(env)
    observation, over = played.reset(options={"requests": requests})[0], False
    while not over:
        observation, _, over, _, _ = played.step(choose(observation[None])[0])
    np.testing.assert_array_equal(played.fleet.servers.hidden.ledger["completed"][0], alone)


@pytest.mark.parametrize("spec", ["slackfit:phases=exclusive", "slackfit:tuned", "slackfit:longest=4"])
def test_what_is_no_choice_must_be_as_in_the_teacher(spec: str) -> None:
    with pytest.raises(InputError, match=r"^teacher: expected env\.(phases|close|longest) as in 'slackfit:"):
        teacher(spec, EnvConfig(action=Slackfit()))
    with pytest.raises(InputError, match="profile="):
        teacher("slackfit:profile=rtx6000ada-mistral-7b", EnvConfig(action=Slackfit()))


def test_training_begins_from_the_teacher(tmp_path: Path) -> None:
    config = small(tmp_path)
    config = replace(config, env=replace(config.env, action=Slackfit()), teacher="slackfit", imitation_steps=5000)
    assert (train(config) / "final" / "policy.json").is_file()


@pytest.mark.parametrize(
    ("spec", "env"),
    [("slai", {}), ("slackfit", {}), ("sarathi", {"action": "slackfit"}), ("slackfit", {"action": "mixture"})],
)
def test_a_teacher_outside_the_action_space_is_refused(spec: str, env: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="teacher: expected slackfit"):
        teacher(spec, EnvConfig(**env))


@pytest.mark.parametrize("name", ["ageing", "close"])
def test_settings_of_slackfit_need_its_action(name: str) -> None:
    keywords: dict[str, Any] = {"action": "slackfit", name: 2.0}
    assert getattr(LLMSchedEnv(**keywords).config.action, name) == 2.0
    cases: list[tuple[dict[str, Any], str]] = [
        ({name: 2.0}, f"env.{name}: unknown setting of action='allocation', known: hold, budget; {name} belongs to"),
        ({name: -1.0, "action": "slackfit"}, f"action 'slackfit': {name}: expected a number >= 0, got -1.0"),
        ({name: float("nan"), "action": "slackfit"}, f"env.{name}: expected a number, got nan"),
    ]
    for fields, message in cases:
        with pytest.raises(InputError, match=message):
            LLMSchedEnv(**fields)


@pytest.mark.parametrize("hold", [0, -1])
def test_a_choice_holds_for_at_least_one_iteration(hold: int) -> None:
    with pytest.raises(InputError, match="hold: expected a whole number >= 1"):
        Allocation(hold=hold)
    with pytest.raises(InputError, match=r"env\.hold: unknown setting of action='mixture', known: arms"):
        LLMSchedEnv(hold=2, action="mixture")
