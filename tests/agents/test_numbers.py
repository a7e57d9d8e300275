"""Numbers as the commands print and write them: vLLM's keys, realised rates, results of other versions."""

import json
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from agents.cli import commands, main
from engine.fields import limits_of, types_of

FIVE = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,100,3\n0.05,50,1\n0.30,200,2\n0.31,10,4\n1.0,80,5\n"
HAND = {"format": "llmsched-profile/1", "overhead": 0.02, "floor": 0, "per_token": 0.001, "per_pair": 0}
SMALL = "--workload poisson:lengths=lognormal:5,1,3,1,2000 --num-requests 30 --seeds 2 --workers 1 --no-plots"


def run(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    code = main(line.split())
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True)
def _in_a_folder_with_five_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("five.csv").write_text(FIVE)
    Path("hand.json").write_text(json.dumps(HAND | {"per_context": 0, "name": "hand"}))


def test_simulate_gives_the_goodput_of_vllm_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    line = "simulate --policy vllm_v1 --profile hand.json --trace five.csv --json five.json"
    code, out, err = run(capsys, f"{line} --goodput ttft:200 tpot:50")
    assert (code, err) == (0, "")
    assert "2.534 requests/s within ttft:200 tpot:50 ms" in out
    assert "Arrivals, requests/s: recorded 4." in out
    data = json.loads(Path("five.json").read_text())
    assert data["request_goodput"] == pytest.approx(2.534, abs=5e-4)
    assert (data["request_rate"], data["arrival_rate"]) == (None, pytest.approx(4.0))
    assert run(capsys, line)[0] == 0
    assert json.loads(Path("five.json").read_text())["request_goodput"] is None


def test_simulate_says_at_which_rate_the_requests_came(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "simulate --policy slai --num-requests 100 --rate 1.6 --seed 3 --json j.json")
    data = json.loads(Path("j.json").read_text())
    assert code == 0
    assert data["request_rate"] == 1.6
    assert data["arrival_rate"] != pytest.approx(1.6, rel=1e-3)
    assert f"Arrivals, requests/s: asked 1.6, came {data['arrival_rate']:.3g}." in out
    code, out, _ = run(capsys, "simulate --policy slai --workload burst --num-requests 3 --json j.json")
    assert "Arrivals" not in out
    assert json.loads(Path("j.json").read_text())["request_rate"] == "inf"


def test_comparisons_say_at_which_rate_the_requests_came(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, f"evaluate {SMALL} --policies sarathi --rates 4 --json j.json --goodput ttft:300")
    result = json.loads(Path("j.json").read_text())
    rates = [trace["rate"] for trace in result["traces"]]
    note = f"asked 4, came {sum(rates) / 2:.3g} ({min(rates):.3g} to {max(rates):.3g})"
    assert code == 0
    assert note in " ".join(out.split())
    assert [cell["report"]["arrival_rate"] for cell in result["cells"]] == pytest.approx(rates)
    assert result["config"]["goodput"] == {"ttft": 300.0, "tpot": None, "e2el": None}
    assert result["summary"][0]["metrics"]["request_goodput"]["mean"] > 0.0


def test_capacity_says_how_far_arrivals_were_from_the_asked_rates(capsys: pytest.CaptureFixture[str]) -> None:
    line = "capacity --policies sarathi --workload poisson:lengths=fixed:64,4 --num-requests 30 --seeds 2 --workers 1"
    code, out, _ = run(capsys, f"{line} --rates 2,4 --json j.json")
    points = json.loads(Path("j.json").read_text())["points"]
    off = [point["arrival_rate"] / point["rate"] - 1.0 for point in points]
    assert code == 0
    assert f"arrivals came {sum(off) / len(off):+.1%} off on average" in " ".join(out.split())


def test_a_result_of_an_older_version_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("old.json").write_text(json.dumps({"format": "llmsched-evaluation/1", "cells": [1]}))
    code, _, err = run(capsys, "report old.json")
    assert code == 2
    assert err.count("\n") == 1
    assert "got 'llmsched-evaluation/1' of an older llmsched: run evaluate again" in err


@pytest.mark.parametrize("line", ["simulate --goodput itl:3", "evaluate --goodput ttft"])
def test_limits_that_vllm_does_not_know_are_refused(capsys: pytest.CaptureFixture[str], line: str) -> None:
    code, _, err = run(capsys, line)
    assert code == 2
    assert err.startswith("llmsched: goodput: expected ttft:MS, tpot:MS or e2el:MS")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        "simulate --num-requests 5 --horizon 0.001 --goodput ttft:1",
        "simulate --workload poisson:lengths=fixed:10,1 --num-requests 1",
        f"evaluate {SMALL} --policies sarathi,slai --horizon 0.2 --goodput ttft:300",
        "starvation --num-requests 5 --seeds 1 --rates 1 --ageing 0,5 --workers 1 --horizon 0.2",
        "sensitivity --num-requests 20 --seeds 2 --horizon 0.8 --rates 1 --policies srtf --json s --plot s.png",
        "sensitivity --workload poisson:lengths=fixed:9,5 --num-requests 9 --seeds 1 --policies srtf --rates 1",
    ],
)
def test_what_does_not_exist_is_a_dash(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Nobody served, one token, a tier without requests, equal lengths: no nan is printed, and nothing breaks."""
    code, out, err = run(capsys, line)
    assert (code, err) == (0, "")
    assert " -" in out
    assert not {"nan", "inf", "nan%", "None"} & set(out.replace(",", " ").replace(";", " ").split())


def test_every_number_that_a_command_takes_declares_its_range() -> None:
    unlimited = {
        f"{name} {field}"
        for name in commands()
        for field, kind in types_of(import_module(f"agents.commands.{name}").Command, with_ranges=True).items()
        if {int, float} & {kind, *get_args(kind)} or any({int, float} & set(get_args(one)) for one in get_args(kind))
        if limits_of(kind) is None
    }
    takes_infinity = {f"{name} horizon" for name in commands()}
    assert unlimited - takes_infinity == {"bench scale"}  # which is checked where it is used, from Python too
