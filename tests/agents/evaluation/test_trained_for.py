"""A policy that was trained for something else says so in one line; what is meant to vary says nothing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agents.cli
import baselines
from agents.evaluation.evaluate import Evaluation, evaluate
from agents.evaluation.trained_for import remark
from agents.learning.learned.bundle import Bundle
from agents.learning.learned.load import policy_of
from agents.policies import resolve
from agents.reporting.report import html_text
from agents.source import Source
from engine.config import EngineConfig
from engine.demand.length_models import EmpiricalLengths
from engine.demand.lengths import measure_table
from engine.demand.requests import DEFAULT_TIERS, Tier
from engine.demand.workload import Workload
from engine.device.latency import LatencyModel, load_profile
from engine.scenarios.suite import read_scenarios
from llmsched_env import EnvConfig, LLMSchedVectorEnv
from llmsched_env.observation import OBSERVATION_SIZE

DEVICE = load_profile("rtx6000ada-mistral-7b")
THREE = (
    Tier("gold", 0.2, tbt_s=0.05, ttft_s=0.5, strict=True),
    Tier("silver", 0.3, tbt_s=0.2, ttft_s=2.0),
    Tier("bronze", 0.5, tbt_s=1.0, ttft_s=9.0),
)


def bundle(env: EnvConfig, model: LatencyModel = DEVICE) -> Bundle:
    """A policy that always does the same, of this environment."""
    heads = sum(env.action.sizes)
    layers = ((np.zeros((heads, OBSERVATION_SIZE), np.float32), np.zeros(heads, np.float32)),)
    codec = env.action.codec.params(model)
    return Bundle(layers, "tanh", np.zeros(OBSERVATION_SIZE), np.ones(OBSERVATION_SIZE), 10.0, codec, env)


def said(env: EnvConfig, model: LatencyModel = DEVICE, trained_on: LatencyModel = DEVICE, **run: Any) -> str:
    source, config = run.get("source", Source()), run.get("config", EngineConfig())
    return remark(policy_of(bundle(env, trained_on), "runs/x"), DEFAULT_TIERS, model, config, source)


def test_what_is_meant_to_vary_is_not_remarked_on() -> None:
    assert said(EnvConfig(rates=(0.5, 9.0), backlog=3, workload=Workload(rate=7.0, num_requests=99))) == ""
    assert said(EnvConfig(), source=Source(workload="gamma:cv=3", num_requests=7)) == ""
    shares = tuple(replace(tier, share=0.5) for tier in DEFAULT_TIERS)
    assert said(EnvConfig(workload=Workload(tiers=shares))) == ""
    assert remark(baselines.make("slai"), THREE, DEVICE, EngineConfig(num_blocks=99), Source()) == ""
    other = load_profile("h100-mistral-7b")
    assert said(EnvConfig(), other) != ""
    assert said(EnvConfig(scenarios=read_scenarios("training")), other) == ""


def test_the_shipped_policy_is_at_home_on_the_defaults() -> None:
    assert remark(resolve("pretrained"), DEFAULT_TIERS, DEVICE, EngineConfig(), Source()) == ""


@pytest.mark.parametrize(
    ("env", "run", "line"),
    [
        (
            {"workload": Workload(tiers=THREE)},
            {},
            "runs/x was trained with 3 tiers (gold strict 0.5/0.05 s, silver 2/0.2 s, bronze 9/1 s); "
            "here 2 tiers (strict 2/0.1 s, relaxed 2/0.5 s)",
        ),
        (
            {"workload": Workload(tiers=(replace(DEFAULT_TIERS[0], weight=3.0), DEFAULT_TIERS[1]))},
            {},
            "runs/x was trained with 2 tiers (strict 2/0.1 s weight 3, relaxed 2/0.5 s); "
            "here 2 tiers (strict 2/0.1 s, relaxed 2/0.5 s)",
        ),
        (
            {"workload": Workload(tiers=(replace(DEFAULT_TIERS[0], strict=False), DEFAULT_TIERS[1]))},
            {},
            "runs/x was trained with 2 tiers (strict not strict 2/0.1 s, relaxed 2/0.5 s); "
            "here 2 tiers (strict 2/0.1 s, relaxed 2/0.5 s)",
        ),
        (
            {"profile": "rtx6000ada-mistral-7b:speed=2"},
            {"trained_on": DEVICE.scaled(0.5)},
            "runs/x was trained with profile rtx6000ada-mistral-7b:speed=2; here profile rtx6000ada-mistral-7b",
        ),
        (
            {},
            {"trained_on": DEVICE.scaled(0.5)},
            "runs/x was trained with profile rtx6000ada-mistral-7b with other numbers; "
            "here profile rtx6000ada-mistral-7b",
        ),
        (
            {"engine": EngineConfig(num_blocks=700, max_model_len=8192)},
            {},
            "runs/x was trained with num_blocks 700, max_model_len 8192; here 14000, 16384",
        ),
        (
            {},
            {"source": Source(workload="poisson:lengths=fixed:512,8")},
            "runs/x was trained with lengths openchat_sharegpt4; here lengths fixed:512,8",
        ),
    ],
)
def test_a_difference_is_named_with_both_sides(env: dict[str, Any], run: dict[str, Any], line: str) -> None:
    assert said(EnvConfig(**env), **run) == line


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """The folder of a policy that was trained on three tiers."""
    bundle(EnvConfig(workload=Workload(tiers=THREE))).save(tmp_path / "x")
    return tmp_path / "x"


def test_every_output_has_the_line(stranger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"{stranger} was trained with 3 tiers"
    small = ["--num-requests", "5", "--json", str(tmp_path / "out.json")]
    assert agents.cli.main(["simulate", "--policy", str(stranger), *small]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "out.json").read_text())["notes"][0].startswith(line)
    grid = ["--policies", f"sarathi,{stranger}", "--rates", "1.0", "--seeds", "1", "--workers", "1"]
    assert agents.cli.main(["capacity", *grid, *small, "--out", str(tmp_path / "capacity")]) == 0
    assert line in " ".join(capsys.readouterr().out.split())
    evaluation = Evaluation(
        policies=("sarathi", str(stranger)),
        source=Source(num_requests=5),
        seeds=1,
        reference="sarathi",
        profile=DEVICE,
        config=EngineConfig(),
        loads=(1.0,),
    )
    result = evaluate(evaluation, with_windows=False)
    assert result.notes[0].startswith(line)
    assert line in html_text(result, {})


@pytest.mark.parametrize("kind", ["file", "table", "rows"])
def test_a_bundle_holds_its_length_table(kind: str, tmp_path: Path) -> None:
    """It is loaded where the file is not, and its environment draws the same lengths."""
    rng = np.random.default_rng(0)
    prompt, output = rng.integers(10, 200, 60), rng.integers(5, 50, 60)
    table = measure_table(prompt, output, name="mine", source="here", licence="none", bins=4)
    table.save(tmp_path / "mine.json")
    rows = EmpiricalLengths(prompt, output, "mine")
    lengths: Any = {"file": str(tmp_path / "mine.json"), "table": table, "rows": rows}[kind]
    env = EnvConfig(workload=Workload(num_requests=30, lengths=lengths))
    before = env.workload.generate(1)
    bundle(env).save(tmp_path / "x")
    (tmp_path / "mine.json").unlink()
    (tmp_path / "x").rename(tmp_path / "moved")
    loaded = Bundle.load(tmp_path / "moved")
    after = loaded.env.workload.generate(1)
    if kind != "rows":
        np.testing.assert_array_equal(after.prompt, before.prompt)
        np.testing.assert_array_equal(after.output, before.output)
    assert after.prompt.min() >= 10
    assert after.prompt.max() <= 200
    LLMSchedVectorEnv(2, loaded.env).reset(seed=0)
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "policy.json").read_bytes() == (tmp_path / "moved" / "policy.json").read_bytes()


def test_a_bundle_whose_profile_file_is_gone_can_be_used(tmp_path: Path) -> None:
    DEVICE.scaled(0.5).save(tmp_path / "mine.json")
    env = EnvConfig(profile=str(tmp_path / "mine.json"))
    bundle(env, load_profile(env.profile)).save(tmp_path / "x")
    (tmp_path / "mine.json").unlink()
    policy = resolve(str(tmp_path / "x"))
    line = remark(policy, DEFAULT_TIERS, DEVICE, EngineConfig(), Source())
    assert line == f"{tmp_path / 'x'} was trained with profile {env.profile}; here profile {DEVICE.name}"
