"""Closed loops from the command line: both kinds, what comes out, and what has no rate to search."""

import json
from pathlib import Path

import pytest

from agents.cli import main

SMALL = "--policy sarathi --num-requests 20"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_simulate_limits_the_requests_in_flight_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"simulate {SMALL} --rate 50 --workload poisson:lengths=fixed:500,20 --max-concurrency 2 --json out.json"
    assert main(line.split()) == 0
    data = json.loads(Path("out.json").read_text())
    assert (data["max_concurrency"], data["max_concurrent_requests"], data["completed"]) == (2, 2, 20)
    assert data["arrival_rate"] < 10.0
    assert "closed loop, at most 2 requests in flight" in capsys.readouterr().out.replace("\n", " ")


def test_simulate_serves_users_who_think(capsys: pytest.CaptureFixture[str]) -> None:
    spec = "closed:concurrency=3,think=fixed:1,lengths=fixed:500,20"
    assert main(f"simulate {SMALL} --workload {spec} --json out.json".split()) == 0
    data = json.loads(Path("out.json").read_text())
    assert (data["max_concurrency"], data["completed"]) == (3, 20)
    out = capsys.readouterr().out.replace("\n", " ")
    assert "closed loop, 3 users, think 1 s" in out
    assert "recorded" not in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"simulate {SMALL} --workload closed --rate 2", "rate: expected none for a closed loop"),
        (f"simulate {SMALL} --workload closed --max-concurrency 2", "max_concurrency: expected an open workload"),
        (f"simulate {SMALL} --max-concurrency 0", "max_concurrency"),
        ("devices --policies sarathi --workload closed", "devices: expected an open loop"),
        ("capacity --policies sarathi --workload closed", "capacity: expected an open loop"),
        ("capacity --policies sarathi --max-concurrency 4", "capacity: expected an open loop"),
    ],
)
def test_what_does_not_go_with_a_closed_loop_is_refused_in_one_line(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"llmsched: {message}")
    assert err.count("\n") == 1
