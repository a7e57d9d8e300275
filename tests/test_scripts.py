"""The scripts run as their first lines say; without a GPU they say so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "scripts" / "gpu_check.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_gpu_check_goes_through_its_stages_on_a_cpu(tmp_path: Path) -> None:
    done = run("--executor", "transformers:tiny", "--tokens", "64", "--seconds", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "gpu_check.json").read_text())
    assert result["steps"]["decode 1 @ 1024"]["median_s"] > 0.0
    assert result["fit"]["held-out mixed"]["points"] > 0
    profile = json.loads((tmp_path / "h100-mistral-7b.json").read_text())
    assert profile["provenance"]["device"] == result["device"]["device"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_without_a_gpu_says_so_in_one_line(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check: executor: expected a CUDA device")
    assert done.stderr.count("\n") == 1


def test_model_card_compares_the_shipped_policy_everywhere(tmp_path: Path) -> None:
    script = [sys.executable, str(SCRIPT.with_name("model_card.py")), "--out", str(tmp_path)]
    done = subprocess.run([*script, "--requests", "40", "--seeds", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "card.json").read_text())
    shipped = json.loads((SCRIPT.parent.parent / "agents" / "learning" / "pretrained" / "card.json").read_text())
    what = ("workload", "profile", "load", "reference", "metric")
    assert [[row[key] for key in what] for row in card["results"]] == [
        [row[key] for key in what] for row in shipped["results"]
    ]
    assert {key: card[key] for key in ("command", "training")} == {key: shipped[key] for key in ("command", "training")}
    assert (tmp_path / "CARD.md").read_text().count("\n| ") == 1 + len(card["results"])


def test_ablations_train_and_compare(tmp_path: Path) -> None:
    """Next to no training of two variants; what is trained is not trained again."""
    script = [sys.executable, str(SCRIPT.with_name("ablations.py")), "--out", str(tmp_path), "--seeds", "1", "--short"]
    script += ["--only", "evolution-constant", "static-mixture", "--traces", "2", "--requests", "60"]
    first, again = (subprocess.run(script, capture_output=True, text=True, check=False) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert (first.stderr.count("trained:"), again.stderr.count("trained:")) == (2, 0)
    assert again.stdout == first.stdout
    assert first.stdout.count("\n| ") == 2
    figures = json.loads((tmp_path / "ablations.json").read_text())
    assert set(figures) == {"evolution-constant", "static-mixture"}
