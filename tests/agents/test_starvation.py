"""`llmsched starvation`: the knob of baselines and of learned policies, its table and its plot."""

import json
from pathlib import Path

import pytest

from agents.cli import main
from agents.commands.starvation import with_ageing
from agents.policies import fingerprint, resolve, split_policies
from engine.errors import InputError


def test_more_ageing_shortens_the_longest_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "starvation.json", tmp_path / "starvation.png"
    line = "--policies slackfit,pretrained --ageing 0,1000 --rates 2.2 --seeds 2 --num-requests 300"
    assert main(["starvation", *line.split(), "--json", str(out), "--plot", str(plot)]) == 0
    waits = {r["policy"]: r["metrics"]["max_wait_s"]["mean"] for r in json.loads(out.read_text())["summary"]}
    assert waits["slackfit:ageing=1000"] < 0.8 * waits["slackfit:ageing=0"]
    assert waits["pretrained:ageing=1000"] < 0.8 * waits["pretrained:ageing=0"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "quarter" in capsys.readouterr().out


@pytest.mark.parametrize("ageing", ["", "fast", "-1", "5,5"])
def test_settings_must_be_numbers(ageing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["starvation", "--ageing", ageing]) == 2
    assert "ageing: expected numbers >= 0" in capsys.readouterr().err


def test_learned_policies_take_the_settings_of_slackfit_behind_their_name() -> None:
    plain, aged = resolve("pretrained"), resolve("pretrained:ageing=20,close=0.5")
    assert aged.spec == "pretrained:ageing=20,close=0.5"
    assert vars(aged)["bundle"].env.action.ageing == 20.0
    assert vars(aged)["bundle"].env.action.close == 0.5
    assert (vars(aged)["bundle"].codec != vars(plain)["bundle"].codec).sum() == 2
    assert fingerprint("pretrained:ageing=20") != fingerprint("pretrained")
    assert split_policies("pretrained:ageing=20,close=0.5,slai") == ("pretrained:ageing=20,close=0.5", "slai")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pretrained:ageing", "expected ageing or close or close_until or longest = a number, got 'ageing'"),
        ("pretrained:slack=2", "got 'slack=2'"),
        ("pretrained:ageing=-1", "ageing: expected a number >= 0, got -1"),
        ("nosuch:ageing=1", "expected one of"),
    ],
)
def test_other_settings_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(spec)


def test_the_setting_joins_those_that_are_there() -> None:
    assert with_ageing("slackfit", 5.0) == "slackfit:ageing=5"
    assert with_ageing("slackfit:slack=2.0", 5.0) == "slackfit:slack=2.0,ageing=5"
    assert with_ageing("pretrained", 0.0) == "pretrained:ageing=0"
