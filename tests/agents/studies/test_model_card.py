"""The model card compares the shipped policy wherever the shipped card does."""

import json
import subprocess
import sys
from pathlib import Path

from agents.policies import pretrained_folder


def test_model_card_compares_the_shipped_policy_everywhere(tmp_path: Path) -> None:
    script = [sys.executable, "-m", "agents.studies.model_card", "--out", str(tmp_path)]
    done = subprocess.run([*script, "--requests", "40", "--seeds", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "card.json").read_text())
    shipped = json.loads((pretrained_folder() / "card.json").read_text())
    what = ("workload", "profile", "load", "reference", "metric")
    assert [[row[key] for key in what] for row in card["results"]] == [
        [row[key] for key in what] for row in shipped["results"]
    ]
    assert {key: card[key] for key in ("command", "training")} == {key: shipped[key] for key in ("command", "training")}
    assert (tmp_path / "CARD.md").read_text().count("\n| ") == 1 + len(card["results"])
