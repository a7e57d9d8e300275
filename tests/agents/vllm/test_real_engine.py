"""A real engine of vLLM with a tiny model keeps what the smoke test promises; where vLLM is installed.

`scripts/vllm_cpu.py` makes an environment for it and runs more of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from agents.policies import split_policies
from agents.vllm.smoke import POLICIES
from agents.vllm.versions import installed

ROOT = Path(__file__).resolve().parents[3]


CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.skipif(installed() is None, reason="vLLM is not installed")
@pytest.mark.parametrize("blocks", [[], ["--blocks", "24"]], ids=["ample", "short"])
def test_real_engine_does_what_is_planned(tmp_path: Path, blocks: list[str]) -> None:
    command = [sys.executable, "-m", "agents.vllm", "smoke", "--requests", "20", "--runs", "1", *blocks]
    out = tmp_path / "smoke.json"
    subprocess.run([*command, "--json", str(out)], cwd=ROOT, env=os.environ | CPU, timeout=600, check=False)
    runs = json.loads(out.read_text())["runs"]
    assert [run["policy"] for run in runs][-4:] == list(split_policies(POLICIES))
    assert [run["faults"] for run in runs] == [[]] * len(runs)
    steered = [run["counters"]["preemptions"] for run in runs[-4:]]
    assert all(steered) if blocks else not any(steered)
