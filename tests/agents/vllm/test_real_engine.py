"""A real engine of vLLM with a tiny model keeps what the smoke test promises; where vLLM is installed.

`scripts/vllm_cpu.py` makes an environment for it and runs more of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents.vllm.versions import installed

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
@pytest.mark.skipif(installed() is None, reason="vLLM is not installed")
def test_real_engine_does_what_is_planned(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agents.vllm", "smoke", "--requests", "20", "--runs", "1"]
    out = tmp_path / "smoke.json"
    cpu = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--json", str(out)], cwd=ROOT, env=os.environ | cpu, timeout=600, check=False)
    found = json.loads(out.read_text())
    assert [run["faults"] for run in found["runs"]] == [[]] * 5
