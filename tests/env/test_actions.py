"""Actions: each in a file of its own; how they are called, now and in what earlier versions wrote."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from agents.cli import main
from agents.learning.learned.bundle import Bundle
from agents.learning.learned.load import policy_of
from agents.learning.ppo.train_config import TrainConfig
from engine.compiled.records import record
from engine.config import EngineConfig
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel, load_profile
from engine.device.predicting import DEVICE
from engine.errors import InputError
from engine.runs.simulate import simulate
from engine.server.moves import admit, continue_prefills, decode_oldest_first
from engine.server.policy import HotKernel, Kernel
from engine.server.state import Memory, Plan, View
from llmsched_env import ACTIONS, OBSERVATION_SIZE, Action, Allocation, EnvConfig, LLMSchedEnv, Mixture, Slackfit
from llmsched_env.actions.action import LEVELS, Codec

SHORT = Workload(rate=3.0, num_requests=24)

# A whole new action, as its file in llmsched_env/actions would hold it: how many units of prompt tokens a batch takes.

PARAMS = np.dtype([("profile", DEVICE), ("unit", "f8")])
_params = record(PARAMS)


@HotKernel
def take_units(view: View, memory: Memory, plan: Plan) -> None:
    """All decodes, then as many units of prompt tokens as the level says, in order of arrival."""
    budget = int((1.0 + memory.row[LEVELS]) * _params(memory.params).unit)
    continue_prefills(view, plan, decode_oldest_first(view, plan), budget)
    for k in range(view.row[0].num_waiting):
        if not admit(view, plan, view.queue[k], budget - plan.draft[0].tokens):
            break


@dataclass(frozen=True)
class Units(Codec):
    """How many units of prompt tokens a batch takes."""

    name: ClassVar[str] = "units"
    PARAMS: ClassVar[np.dtype] = PARAMS
    kernel: ClassVar[Kernel] = take_units
    request_memory: ClassVar[int] = 1
    own_cells: ClassVar[int] = 0
    DECODES: ClassVar[tuple[int, ...]] = (0,)
    FALLBACK: ClassVar[tuple[int, ...]] = (1,)

    unit: int = 256
    """Tokens."""

    @property
    def heads(self) -> dict[str, int]:
        """One dimension."""
        return {"units": 4}

    def named(self, model: LatencyModel) -> dict[str, Any]:
        """The kernel's parameters by name."""
        return {"unit": float(self.unit)}


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line in the registry."""
    monkeypatch.setitem(ACTIONS, "units", Units)


@pytest.mark.usefixtures("units")
def test_a_new_action_is_a_file_and_a_line_of_the_registry() -> None:
    """It is a keyword with its settings, both faces play it, and what is learned on it leaves the environment."""
    keywords: dict[str, Any] = {"workload": SHORT, "action": "units", "unit": 300, "hold": 2, "skip_decode_only": True}
    single: Any = gymnasium.make("LLMSched-v0", **keywords)
    rows: Any = gymnasium.make_vec("LLMSched-v0", num_envs=2, **keywords)
    config = single.unwrapped.config
    assert config == EnvConfig(workload=SHORT, action=Units(unit=300, hold=2), skip_decode_only=True)
    assert EnvConfig.from_dict(config.to_dict()) == config
    assert single.action_space == gymnasium.spaces.Discrete(4)
    single.reset(seed=0)
    with pytest.raises(InputError, match=r"^action: expected whole numbers 0\.\.3 \(units\), got 4$"):
        single.unwrapped.step(4)
    weight = np.random.default_rng(0).normal(0.0, 1.0, (4, OBSERVATION_SIZE)).astype(np.float32)
    codec = config.action.params(load_profile(config.profile))
    bias = np.zeros(4, np.float32)
    bundle = Bundle(
        ((weight, bias),), "tanh", np.zeros(OBSERVATION_SIZE), np.ones(OBSERVATION_SIZE), 9.0, codec, config
    )
    policy = policy_of(bundle, "units")
    requests = SHORT.generate(3)
    observation, over = single.reset(options={"requests": requests})[0], False
    both = rows.reset(options={"requests": [requests] * 2})[0]
    chosen = set()
    while not over:
        np.testing.assert_array_equal(both, [observation] * 2)
        choice = int(policy.choose(observation[None])[0, 0])
        chosen.add(choice)
        observation, _, over, _, info = single.step(choice)
        both = rows.step(np.array([choice] * 2))[0] if not over else both
    record = simulate(policy, requests, load_profile(config.profile))
    assert len(chosen) > 1
    assert info["report"]["completed"] == len(requests)
    servers = single.unwrapped.fleet.servers
    np.testing.assert_array_equal(record.ledger["completed"], servers.hidden.ledger["completed"][0])


OLD = {"hold": 1, "ageing": 0.0, "close": 0.0, "arms": ["slai", "vllm"], "budget": "tokens", "action": "allocation"}
"""The action in a file of an earlier version, which had the settings of all actions."""


@pytest.mark.parametrize(
    ("given", "action"),
    [
        ({}, Allocation()),
        ({"action": "slackfit", "hold": 8, "close": 0.35}, Slackfit(hold=8, close=0.35)),
        ({"action": {"name": "slackfit", "hold": 8}}, Slackfit(hold=8)),
        ({"action": {"hold": 2}, "budget": "time"}, Allocation(hold=2, budget="time")),
        ({"action": Slackfit(hold=8), "close": 1}, Slackfit(hold=8, close=1.0)),
        ({"action": "mixture", "arms": ["slai", "vllm"]}, Mixture(arms=("slai", "vllm"))),
        ({"budget": "slackfit", "ageing": 5.0}, Slackfit(ageing=5.0)),
        ({"action": "allocation", "budget": "slackfit", "hold": 3}, Slackfit(hold=3)),
        (OLD, Allocation()),
        (OLD | {"budget": "time", "hold": 4}, Allocation(budget="time", hold=4)),
        (OLD | {"budget": "slackfit", "close": 0.35, "hold": 8}, Slackfit(close=0.35, hold=8)),
        (OLD | {"action": "mixture", "budget": "time"}, Mixture(arms=("slai", "vllm"))),
    ],
)
def test_every_spelling_says_the_same_everywhere(given: dict[str, Any], action: Action) -> None:
    assert EnvConfig.from_dict(given) == EnvConfig(action=action)
    assert LLMSchedEnv(**given).config.action == action


def test_another_action_keeps_the_settings_that_both_have() -> None:
    config = EnvConfig(action=Allocation(budget="time", hold=4))
    assert LLMSchedEnv(config, action="slackfit").config.action == Slackfit(hold=4)
    assert LLMSchedEnv(config, budget="tokens").config.action == Allocation(hold=4)
    assert LLMSchedEnv(config, action="mixture").config.action == Mixture()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"action": "magic"}, "env.action: expected allocation, slackfit or mixture, got 'magic'"),
        ({"action": 3}, "env.action: expected allocation, slackfit or mixture, got 3"),
        ({"action": {"name": 3}}, "env.action: expected allocation, slackfit or mixture, got 3"),
        ({"action": {"magic": 3}}, "env.magic: unknown setting of action='allocation', known: hold, budget"),
        (
            {"close": 1.0},
            "env.close: unknown setting of action='allocation', known: hold, budget; "
            "close belongs to action='slackfit'",
        ),
        (
            {"action": "mixture", "hold": 2},
            "env.hold: unknown setting of action='mixture', known: arms; hold belongs to action='allocation'",
        ),
        ({"hold": 1.5}, "env.hold: expected a whole number, got 1.5"),
        ({"hold": 0}, "action 'allocation': hold: expected a whole number >= 1, got 0"),
        (
            {"action": "mixture", "arms": []},
            "env.arms: expected at least one baseline for the mixture action, got none",
        ),
    ],
)
def test_what_an_action_is_not_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        EnvConfig.from_dict(given)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["budget", "hold", "ageing", "close", "arms"])
def test_the_record_says_where_a_setting_is_now(name: str) -> None:
    old: Any = {name: 1}
    with pytest.raises(
        InputError, match=rf"^EnvConfig: {name}: expected as a setting of its action, action=\w+\(...\)$"
    ):
        EnvConfig(**old)
    with pytest.raises(InputError, match=f"^EnvConfig: {name}: expected"):
        replace(EnvConfig(), **old)


@pytest.mark.parametrize("replans_at_once", [True, False])
def test_time_goes_on_where_nothing_of_an_arms_plan_can_be_done(replans_at_once: bool) -> None:
    """FasterTransformer counts on KV that it reserved; Sarathi admitted, all blocks are taken, and nobody arrives."""
    lengths, requests = "lognormal:4.5,0.7,4.2,0.7,512", 40
    scarce = EngineConfig(num_blocks=40, max_num_seqs=12, max_model_len=600, replans_at_once=replans_at_once)
    arms = Mixture(arms=("sarathi", "fastertransformer"))
    workload = Workload(rate=12.0, num_requests=requests, lengths=lengths)
    env = LLMSchedEnv(EnvConfig(workload=workload, rates=(), engine=scarce, action=arms))
    env.reset(seed=0)
    elapsed = [env.step(0)[4]["elapsed_s"] for _ in range(60)]
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(1)
        elapsed.append(info["elapsed_s"])
        assert terminated or any(elapsed[-20:])  # a step that evicts takes no time
    assert info["report"]["completed"] == requests


FLAGS = {
    "--env.action slackfit --env.hold 8": Slackfit(hold=8),
    "--env.budget slackfit --env.close 1": Slackfit(close=1.0),
    "--env.budget time": Allocation(budget="time"),
    "--hyperparams LLMSchedMixture-v0 --env.arms slai sarathi:order=spf": Mixture(arms=("slai", "sarathi:order=spf")),
    "--hyperparams own.yml": Slackfit(hold=4, close=0.5),
    "--hyperparams own.yml --env.close 0.25": Slackfit(hold=4, close=0.25),
    "--hyperparams own.yml --env.action allocation": Allocation(hold=4),
}


@pytest.mark.parametrize("flags", FLAGS)
def test_flags_of_training_name_the_action_and_its_settings(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents.cli import _parse

    monkeypatch.chdir(tmp_path)
    Path("own.yml").write_text("LLMSched-v0:\n  env_kwargs: {budget: slackfit, hold: 4, close: 0.5}\n")
    assert _parse("train", flags.split()).train.env.action == FLAGS[flags]


def test_a_flag_of_another_action_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--env.close", "1"]) == 2
    assert "close belongs to action='slackfit'" in capsys.readouterr().err


def test_the_configuration_of_an_older_run_is_read(tmp_path: Path) -> None:
    config = TrainConfig(run_dir=tmp_path, env=EnvConfig(action=Slackfit(hold=8, close=0.35)))
    saved = config.to_dict()
    del saved["env"]["action"]
    saved["env"] |= OLD | {"budget": "slackfit", "close": 0.35, "hold": 8}
    (tmp_path / "config.json").write_text(json.dumps({"config": saved}))
    assert replace(TrainConfig.of_run(tmp_path), resume=False) == config
