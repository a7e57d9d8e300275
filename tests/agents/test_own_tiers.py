"""Own tiers in every command that serves requests, and every kind of policy under any number of them."""

import json
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from agents.cli import main
from agents.policies import resolve
from agents.source import Source
from engine import InputError, load_profile, parse_tiers, simulate, summarize
from engine.demand.predictions import predict
from llmsched_env import EnvConfig, LLMSchedEnv

THREE = ["name=gold,share=0.2,tbt=0.1,ttft=1", "name=silver,share=0.3,tbt=0.3", "name=bronze,share=0.5,tbt=1,ttft=5"]
FLAGS = [word for text in THREE for word in ("--tier", text)]
FIVE = tuple(f"name=t{k},share=0.2,tbt={0.1 * (k + 1)}" for k in range(5))
SIXTEEN = tuple(f"name=t{k},share=0.0625,tbt={0.1 * (k + 1)}" for k in range(16))
SETS = [("name=one,tbt=0.1",), ("name=one,tbt=5",), tuple(THREE), FIVE, SIXTEEN]
SETS += [("name=a,share=0.5,tbt=0.05,strict=no", "name=b,tbt=0.5")]
PROFILE = load_profile("rtx6000ada-mistral-7b")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("texts", SETS, ids=["1", "1 relaxed", "3", "5", "16", "none strict"])
@pytest.mark.parametrize("spec", ["slai", "slackfit", "pretrained", "slai:order=fcfs", "random", "ltr"])
def test_policies_serve_any_number_of_tiers(texts: tuple[str, ...], spec: str) -> None:
    policy, tiers = resolve(spec), parse_tiers(texts)
    requests = Source(num_requests=60, tiers=tiers).requests(1.6, 0)
    told = predict(requests, policy.channel, 0) if policy.channel else requests
    report = summarize(simulate(policy, told, PROFILE))
    assert report.completed == 60
    assert [tier.name for tier in report.tiers] == [tier.name for tier in tiers]
    assert sum(tier.arrived for tier in report.tiers) == 60


def test_a_strict_tier_is_what_slai_serves_first() -> None:
    waits = {}
    for strict in ("yes", "no"):
        tiers = parse_tiers([f"name=paid,share=0.2,tbt=0.4,strict={strict}", "name=free,tbt=0.4,strict=no"])
        requests = Source(num_requests=300, tiers=tiers).requests(2.5, 0)
        waits[strict] = summarize(simulate(resolve("slai"), requests, PROFILE)).tiers[0].ttft.mean
    assert waits["yes"] < 0.5 * waits["no"]


COMMANDS = {
    "simulate": ["simulate", "--policy", "sarathi", "--num-requests", "5", "--json", "out.json"],
    "evaluate": ["evaluate", "--policies", "sarathi", "--rate", "1", "--seeds", "1", "--num-requests", "5"],
    "capacity": ["capacity", "--policies", "sarathi", "--rates", "1", "--seeds", "1", "--num-requests", "5"],
    "devices": ["devices", "--policies", "sarathi", "--profiles", "rtx6000ada-mistral-7b", "--shares", "0.5"],
    "starvation": ["starvation", "--policies", "slackfit", "--ageing", "0", "--rates", "1", "--seeds", "1"],
    "sensitivity": ["sensitivity", "--policies", "ltr", "--channels", "oracle", "--rates", "1", "--seeds", "1"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_take_tiers_and_say_so_in_their_json(folder: Path, name: str) -> None:
    command = [*COMMANDS[name], *FLAGS, "--num-requests", "5"]
    if name != "simulate":
        command += ["--workers", "1"]
    command += ["--json", "out.json"]
    assert main(command) == 0
    data = json.loads((folder / "out.json").read_text())
    shown = data["setting"] if name == "sensitivity" else data["config"]
    assert [(t["name"], t["share"], t["strict"]) for t in shown["tiers"]] == [
        ("gold", 0.2, True),
        ("silver", 0.3, False),
        ("bronze", 0.5, False),
    ]


def test_tiers_of_a_trace_and_in_the_html_report(folder: Path) -> None:
    (folder / "t.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,100,3\n0.5,50,2\n1,60,2\n")
    command = ["evaluate", "--trace", "t.csv", "--policies", "sarathi", "--seeds", "1", *FLAGS, "--workers", "1"]
    assert main([*command, "--report", "r.html"]) == 0
    assert "silver 30 %, TTFT 2 s, TBT 0.3 s" in (folder / "r.html").read_text()


def test_tune_notes_settings_of_own_tiers_apart(folder: Path) -> None:
    command = [
        "tune",
        "rad",
        "--rates",
        "1",
        "--seeds",
        "1",
        "--num-requests",
        "3",
        "--workers",
        "1",
        "--save",
        "t.json",
    ]
    assert main([*command, "--tier", "name=one,tbt=0.3"]) == 0
    assert list(json.loads((folder / "t.json").read_text())) == ["poisson tiers one:1:0.3:2"]


def test_wrong_tiers_on_the_command_line_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--num-requests", "5", "--tier", "name=a,share=0.4,tbt=1"]) == 2
    assert capsys.readouterr().err == "llmsched: tiers: expected shares that sum to 1, got 0.4 (a 0.4)\n"


def test_environments_take_tiers_as_texts_and_mappings() -> None:
    tiers = [{"name": "gold", "share": 0.2, "tbt": 0.1}, "name=rest,tbt=1"]
    config = EnvConfig.from_dict({"workload": {"num_requests": 6, "tiers": tiers}})
    assert [t.strict for t in config.workload.tiers] == [True, False]
    assert EnvConfig.from_dict(config.to_dict()) == config
    with pytest.raises(InputError, match=r"env\.workload\.tiers: expected keys among"):
        EnvConfig.from_dict({"workload": {"tiers": [{"nome": "x"}]}})


@pytest.mark.parametrize("texts", SETS, ids=["1", "1 relaxed", "3", "5", "16", "none strict"])
def test_both_faces_agree_with_any_number_of_tiers(texts: tuple[str, ...]) -> None:
    workload = {"num_requests": 6, "tiers": list(texts)}
    config = EnvConfig.from_dict({"workload": workload, "max_steps": 40})
    single = LLMSchedEnv(config)
    rows = gymnasium.make_vec("llmsched_env:LLMSched-v0", num_envs=2, config=config)
    one, _ = single.reset(seed=3)
    many, _ = rows.reset(seed=3)
    assert np.array_equal(one, many[0])
    for _ in range(30):
        one, reward, terminated, truncated, info = single.step(np.array([5, 1, 1]))
        many, rewards, *_ = rows.step(np.array([[5, 1, 1]] * 2))
        if terminated or truncated:
            assert {f"p99_itl_ms/{t.name}" for t in config.workload.tiers} <= set(info["report"])
            return
        assert np.array_equal(one, many[0])
        assert reward == rewards[0]


def test_training_takes_tiers(folder: Path) -> None:
    pytest.importorskip("torch")
    command = ["train", "--total-timesteps", "64", "--n-envs", "2", "--n-steps", "16", "--batch-size", "16"]
    command += ["--eval-every", "0", "--run-dir", "run", "--no-progress", "--env.workload.num-requests", "16", *FLAGS]
    assert main(command) == 0
    about = json.loads((folder / "run" / "config.json").read_text())
    assert [tier["name"] for tier in about["config"]["env"]["workload"]["tiers"]] == ["gold", "silver", "bronze"]
