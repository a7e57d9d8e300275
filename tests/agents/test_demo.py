"""`llmsched demo`, shortened: the trained policy is above random-legal, Sarathi-Serve and SLAI on unseen traces."""

import json
from pathlib import Path

import pytest

import agents.cli
from agents.commands.demo import MUST_BEAT, RIVALS


@pytest.mark.slow
def test_demo_ends_above_random_sarathi_and_slai(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--total-timesteps",
        "450_000",
        "--num-requests",
        "2000",
        "--seeds",
        "5",
        "--workers",
        "1",
        "--no-progress",
    ]
    assert agents.cli.main(["demo", *flags, "--out", str(tmp_path)]) == 0
    margins = json.loads((tmp_path / "reward.json").read_text())
    assert set(margins) == set(RIVALS)
    assert all(margins[name]["low"] > 0.0 for name in MUST_BEAT)
    report = (tmp_path / "report.html").read_text()
    assert all(name in report for name in RIVALS)
    printed = capsys.readouterr().out
    assert str(tmp_path / "report.html") in printed
    assert "Default reward for each request" in printed


def test_demo_says_when_the_learner_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the shipped policy and after one rollout there is nothing to win: code 1, and no traceback."""
    monkeypatch.setattr("agents.commands.demo.MUST_BEAT", ("pretrained",))
    flags = ["--total-timesteps", "16_384", "--num-requests", "100", "--seeds", "2", "--workers", "1", "--no-progress"]
    assert agents.cli.main(["demo", *flags, "--out", str(tmp_path)]) == 1
    assert "the trained policy is not above pretrained: train longer" in capsys.readouterr().out
