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
    result = json.loads((tmp_path / "gpu_check-h100-mistral-7b.json").read_text())
    assert result["steps"]["decode 1 @ 1024"]["median_s"] > 0.0
    assert {row["chunk"] for row in result["kv_token"]} == {0}
    assert result["kv_token"][0]["ratio"] == 1.0
    assert result["fit"]["held-out mixed"]["points"] > 0
    profile = json.loads((tmp_path / "h100-mistral-7b.json").read_text())
    assert profile["provenance"]["device"] == result["device"]["device"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_without_a_gpu_says_so_in_one_line(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check: executor: expected a CUDA device")
    assert done.stderr.count("\n") == 1
