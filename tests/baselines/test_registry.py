"""A new baseline is one file and one line of the registry: commands, tuning and runs know it by that."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import baselines

ROOT = Path(__file__).resolve().parents[2]

FRUGAL = '''
"""Frugal: who has had the fewest iterations goes first."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.parameters import Tokens
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.moves import admit, continue_prefills, decode_oldest_first
from engine.server.policy import Policy, Space, kernel_of
from engine.server.queue import first_waiting
from engine.server.state import Memory, Plan, View

REQUEST = np.dtype([("plans", "i8")])


@dataclass(frozen=True)
class Frugal(Policy):
    """Everybody who runs, then one newcomer in each iteration."""

    token_budget: Tokens = 256
    """Tokens per iteration."""

    name: ClassVar[str] = "frugal"
    paper: ClassVar[str] = "ours"
    eviction: ClassVar[str] = "youngest"
    evidence: ClassVar[str] = "a test"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    space: ClassVar[Space] = {"token_budget": (128, 256)}


_params, _requests = record(params_of(Frugal)), records(REQUEST)


@kernel_of(Frugal)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, requests = _params(memory.params), _requests(memory.request)
    last = decode_oldest_first(view, plan)
    continue_prefills(view, plan, last, int(p.token_budget))
    i = first_waiting(view, plan)
    if i >= 0 and admit(view, plan, i, int(p.token_budget)):
        requests[i].plans += 1
'''

CHECKS = """
import baselines
from agents.commands.policies import cells
from agents.studies.tuning import space_of
from engine import Workload, load_profile, simulate

assert baselines.names()[-1] == "frugal"
assert cells(baselines.Frugal)[0] == "frugal"
assert space_of("frugal") == {"token_budget": (128, 256)}
policy = baselines.make("frugal:token_budget=128")
record = simulate(policy, Workload(rate=1.0, num_requests=20).generate(0), load_profile("rtx6000ada-mistral-7b"))
assert record.row["finished"][0] == 20
"""


def test_a_new_baseline_is_one_file_and_one_line(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "baselines", tmp_path / "baselines", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "baselines" / "frugal.py").write_text(FRUGAL, encoding="utf-8")
    registry = tmp_path / "baselines" / "__init__.py"
    last = "from baselines.slackfit import Clairvoyant as Clairvoyant\n"
    line = "from baselines.frugal import Frugal as Frugal\n"
    registry.write_text(registry.read_text(encoding="utf-8").replace(last, last + line), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", CHECKS], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", baselines.names())
def test_what_is_told_of_a_baseline_stands_in_its_class(name: str) -> None:
    cls = baselines.POLICIES[name]
    assert getattr(baselines, cls.__name__) is cls
    assert all((cls.__doc__, cls.paper, cls.knows, cls.eviction, cls.evidence, cls.space))
