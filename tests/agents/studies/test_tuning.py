"""Tuning finds what it should, keeps what it found, and never sees the traces of evaluations."""

import json
from pathlib import Path

import pytest

import agents.cli
import baselines
from agents.commands.tune import Command
from agents.source import Source
from agents.studies import tuning
from engine.config import EngineConfig
from engine.device.latency import load_profile
from engine.errors import InputError

SOURCE = Source(workload="poisson", num_requests=60)


def tune(name: str) -> list[tuning.Setting]:
    model = load_profile("rtx6000ada-mistral-7b")
    return tuning.tune(name, tuning.Ground(SOURCE, (1.0, 2.0), 1, model, EngineConfig()), 1, lambda line: None)


def test_the_best_setting_is_the_cheapest_of_those_tried() -> None:
    found = tune("fastertransformer")
    default, *tried, best = found
    assert default.spec == "fastertransformer"
    assert {s.spec for s in tried} == {
        "fastertransformer",
        *(f"fastertransformer:batch_cap={n}" for n in (16, 32, 64, 128)),
    }
    assert best.cost == min(s.cost for s in tried) < default.cost
    assert len(best.costs) == 2


@pytest.mark.parametrize("name", baselines.names())
def test_every_baseline_says_what_to_try_and_its_values_fit(name: str) -> None:
    policy = baselines.make(name)
    for parameter, values in tuning.space_of(name).items():
        assert len(values) > 1, parameter
        assert all(tuning._changed(policy, parameter, value) is not None for value in values), parameter


def test_settings_are_added_to_a_table(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    tuning.save(path, "poisson", "slai:offset=3.0")
    tuning.save(path, "poisson", "sarathi:token_budget=768")
    tuning.save(path, "burst", "slai")
    tuning.save(path, "poisson", "slai:offset=2.0")
    table = json.loads(path.read_text())
    assert table == {
        "burst": {"slai": "slai"},
        "poisson": {"sarathi": "sarathi:token_budget=768", "slai": "slai:offset=2.0"},
    }


def test_a_setting_for_another_device_is_kept_apart() -> None:
    device = "rtx6000ada-mistral-7b:speed=2"
    assert Command(policies="slackfit", workload="step")._workload() == "step"
    assert Command(policies="slackfit", profile=device)._workload() == f"poisson@{device}"


def test_shipped_settings_can_be_built() -> None:
    for workload, row in baselines.tuned_settings().items():
        for name, spec in row.items():
            assert baselines.make(f"{name}:tuned={workload}").spec == spec


@pytest.mark.parametrize("text", ["[1]", "{", '{"poisson": 3}'])
def test_another_kind_of_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"x\.json.*: expected (a table of tuned settings|JSON|a mapping)"):
        tuning.save(path, "poisson", "slai")
    assert path.read_text() == text


def test_an_interrupted_tuning_goes_on_to_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(name: str) -> list[str]:
        flags = ["--num-requests", "30", "--rates", "1.0", "--seeds", "1", "--workers", "1"]
        return ["tune", "fastertransformer,sarathi", *flags, "--save", str(tmp_path / f"{name}.json")]

    assert agents.cli.main(command("whole")) == 0
    whole = (tmp_path / "whole.cells.jsonl").read_text().splitlines()
    measured, measure = [], tuning.cost

    def interrupted(trial: tuning.Trial) -> float:
        measured.append(trial.spec)
        if len(measured) == 7:
            raise KeyboardInterrupt
        return measure(trial)

    monkeypatch.setattr(tuning, "cost", interrupted)
    assert agents.cli.main(command("parts")) == 130
    assert agents.cli.main([*command("parts"), "--resume", "--rate-scale", "1", "--profile", "a100-llama3-70b"]) == 2
    capsys.readouterr()
    assert agents.cli.main([*command("parts"), "--resume"]) == 0
    assert (tmp_path / "parts.json").read_text() == (tmp_path / "whole.json").read_text()
    assert sorted((tmp_path / "parts.cells.jsonl").read_text().splitlines()) == sorted(whole)
    assert len(measured) == len(whole) - 1 + 1, "a finished cell was measured again"
