"""The model card compares the shipped policy wherever the shipped card does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agents.policies import SHIPPED, pretrained_folder


@pytest.mark.parametrize("name", SHIPPED)
def test_model_cards_compare_the_shipped_policies_everywhere(name: str, tmp_path: Path) -> None:
    script = [sys.executable, "-m", "agents.studies.model_card", "--policy", name, "--out", str(tmp_path)]
    done = subprocess.run([*script, "--requests", "40", "--seeds", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "card.json").read_text())
    shipped = json.loads((pretrained_folder(name) / "card.json").read_text())
    what = ("workload", "profile", "load", "reference", "metric")
    assert [[row[key] for key in what] for row in card["results"]] == [
        [row[key] for key in what] for row in shipped["results"]
    ]
    about = ("policy", "command", "method", "training")
    assert {key: card[key] for key in about} == {key: shipped[key] for key in about}
    assert (tmp_path / "CARD.md").read_text().count("\n| ") == 1 + len(card["results"])
