"""A real engine of vLLM with a tiny model keeps what the smoke test promises; where vLLM is installed.

`scripts/vllm_cpu.py` makes an environment for it and runs more of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents.policies import split_policies
from agents.vllm.smoke import POLICIES
from agents.vllm.versions import installed
from tests.agents.vllm.failing import RAISES, UNREADABLE

ROOT = Path(__file__).resolve().parents[3]


CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


pytestmark = [pytest.mark.slow, pytest.mark.skipif(installed() is None, reason="vLLM is not installed")]


def smoke(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The runs of the smoke test with a few requests."""
    command = [sys.executable, "-m", "agents.vllm", "smoke", "--requests", "20", "--runs", "1", *arguments]
    out = folder / "smoke.json"
    subprocess.run([*command, "--json", str(out)], cwd=ROOT, env=os.environ | CPU, timeout=600, check=False)
    return list(json.loads(out.read_text())["runs"])


@pytest.mark.parametrize("options", [[], ["--prefix-cache"], ["--blocks", "24"]], ids=["ample", "prefix", "short"])
def test_real_engine_does_what_is_planned(tmp_path: Path, options: list[str]) -> None:
    runs = smoke(tmp_path, *options)
    assert [run["policy"] for run in runs][-4:] == list(split_policies(POLICIES))
    assert [run["faults"] for run in runs] == [[]] * len(runs)
    preempted = [run["counters"]["preemptions"] for run in runs[-4:]]
    assert all(preempted) if "--blocks" in options else not any(preempted)


def test_where_a_policy_fails_every_so_often_nobody_loses_a_token(tmp_path: Path) -> None:
    specs = []
    for name, text, every in (("Raises", RAISES, 7), ("Unreadable", UNREADABLE, 5)):
        (tmp_path / f"{name}.py").write_text(text)
        specs.append(f"{tmp_path}/{name}.py:{name}:every={every}")
    raises, unreadable = smoke(tmp_path, "--policies", ",".join(specs))[-2:]
    for run, every in ((raises, 7), (unreadable, 5)):
        found = run["counters"]
        assert run["faults"] == [f"fallbacks: {found['fallbacks']}"]
        assert found["fallbacks"] == (found["fallbacks"] + found["decided"]) // every > 10
    assert "not this time" in raises["counters"]["last_error"]
    assert "cannot be read" in unreadable["counters"]["last_error"]
