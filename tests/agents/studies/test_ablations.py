"""Variants of the training recipe train and are compared."""

import json
import subprocess
import sys
from pathlib import Path


def test_ablations_train_and_compare(tmp_path: Path) -> None:
    """Next to no training of two variants; what is trained is not trained again."""
    script = [sys.executable, "-m", "agents.studies.ablations", "--out", str(tmp_path), "--seeds", "1", "--short"]
    script += ["--only", "evolution-constant", "static-mixture", "--traces", "2", "--requests", "60"]
    first, again = (subprocess.run(script, capture_output=True, text=True, check=False) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert (first.stderr.count("trained:"), again.stderr.count("trained:")) == (2, 0)
    assert again.stdout == first.stdout
    assert first.stdout.count("\n| ") == 2
    figures = json.loads((tmp_path / "ablations.json").read_text())
    assert set(figures) == {"evolution-constant", "static-mixture"}
