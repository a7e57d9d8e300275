"""A few kills at random moments; ``python scripts/kill_check.py --kills 100`` makes a hundred."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "kill_check.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")
def test_killed_runs_leave_no_process_and_no_damage_and_go_on_to_the_same_result() -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "4", "--commands", "capacity,tune", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert (counts["kills"], counts["wrong"]) == (4, [])
