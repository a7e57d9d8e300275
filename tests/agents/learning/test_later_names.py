"""What comes later leaves what was trained as it is: one more observation entry, codec parameter and reward term.

A copy of the packages gets one of each, in the one place where each is declared.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmsched_env import OBSERVATION_SIZE

ROOT = Path(__file__).resolve().parents[3]

PLACES = {
    "llmsched_env/observation.py": (
        ('            ("kv_use", "f4"),', '            ("queue_share", "f4"),\n'),
        ("    o.kv_use = ", "    o.queue_share = row.num_waiting / row.max_num_seqs\n"),
    ),
    "llmsched_env/actions/slackfit.py": (
        ('    ("close", "f8"),', '    ("patience", "f8"),\n'),
        ('            "close": self.close,', '            "patience": 0.0,\n'),
        ('        "ageing": 0.0,', '        "patience": 0.0,\n'),
    ),
    "llmsched_env/reward.py": (
        ("    goodput: NotNegative = 0.0", '    batches: NotNegative = 0.0\n    """Weight of -(iterations)."""\n'),
        ("    terms.goodput += ", "    terms.batches -= sign * row.iterations\n"),
    ),
}
"""What is put in front of a line that begins so."""

PROGRAM = """
import hashlib, json, sys
from pathlib import Path

import numpy as np

from agents.learning.heldout import record_return
from agents.learning.learned.load import load_policy
from engine import Workload, load_profile, simulate
from llmsched_env import OBSERVATION_NAMES, REWARD_TERMS, EnvConfig, LLMSchedEnv, RewardWeights

profile, found = load_profile("rtx6000ada-mistral-7b"), {}
for folder in map(Path, sys.argv[1:]):
    policy = load_policy(folder)
    record = simulate(policy, Workload(rate=2.2, num_requests=80).generate(3), profile)
    found[folder.name] = hashlib.sha256(record.ledger.tobytes() + record.row.tobytes()).hexdigest()
params = dict(policy.bundle.env.action.codec.to_names(policy.bundle.codec))
term = "batches" if "batches" in REWARD_TERMS else "e2e"
weights = RewardWeights(ttft=0.0, tbt=0.0, **{term: 1.0})
env = LLMSchedEnv(EnvConfig(workload=Workload(rate=2.0, num_requests=4), reward=weights), executor=profile)
seen, _ = env.reset(seed=0)
total, over = 0.0, False
while not over:
    seen, reward, over, _, _ = env.step(np.array([5, 0, 0]))
    total += reward
about = {"entries": len(seen), "terms": len(REWARD_TERMS), "knobs": sorted(params)}
own = {"per_run": record_return(record, weights) / record.row["iterations"][0]}
own["per_step"] = total / float(env.fleet.servers.visible.row["iterations"][0, 0])
print(json.dumps({"names": OBSERVATION_NAMES, "found": found, **about, **own}))
"""


def run(place: Path, folders: list[Path], cache: dict[str, str]) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(place), **cache}
    command = [sys.executable, "-c", PROGRAM, *map(str, folders)]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def put_in(place: Path) -> None:
    for name, changes in PLACES.items():
        text = (place / name).read_text(encoding="utf-8")
        for begins, new in changes:
            assert text.count(begins) == 1, (name, begins)
            text = text.replace(begins, new + begins)
        (place / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def folders() -> list[Path]:
    """Shipped policies of both formats."""
    return [ROOT / "agents" / "learning" / "pretrained", Path(__file__).with_name("first_format")]


def test_one_more_of_each_changes_no_decision(tmp_path: Path, folders: list[Path]) -> None:
    for package in ("engine", "baselines", "llmsched_env", "agents"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    put_in(tmp_path)
    before = run(ROOT, folders, {})
    after = run(tmp_path, folders, {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert (before["entries"], after["entries"]) == (OBSERVATION_SIZE, OBSERVATION_SIZE + 1)
    assert ("queue_share" in before["names"], "queue_share" in after["names"]) == (False, True)
    assert ("patience" in before["knobs"], "patience" in after["knobs"]) == (False, True)
    assert (before["terms"], after["terms"]) == (5, 6)
    assert (after["per_run"], after["per_step"]) == (-1.0, -1.0)
    assert before["found"] == after["found"]
    assert len(set(before["found"].values())) == 1
