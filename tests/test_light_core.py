"""An installation without extras: simulations, evaluations and the environment run; what needs more says so."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from engine.errors import InputError
from engine.extras import EXTRAS, missing, need

ROOT = Path(__file__).resolve().parents[1]
OURS = ("engine", "baselines", "llmsched_env", "agents")
NOT_IN_ALL = ("aiconfigurator", "ray", "pettingzoo")
"""Extras that a developer need not have."""
ABSENT = sorted({name for names in EXTRAS.values() for name in names} | {"pandas", "tqdm"})
BLOCK = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def core(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter to which no package of an extra is known."""
    command = (sys.executable, "-c", BLOCK + code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def command(arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One command of `llmsched` there."""
    return core(f"from agents.cli import main\nsys.exit(main({arguments.split()}))", folder)


def test_simulate_runs_without_extras(tmp_path: Path) -> None:
    done = command("simulate --policy slai --num-requests 20 --json result.json", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "result.json").is_file()


def test_evaluate_compares_a_learned_policy_without_extras(tmp_path: Path) -> None:
    done = command("evaluate --policies sarathi,pretrained --num-requests 20 --seeds 2 --workers 1 --out out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pretrained" in done.stdout
    assert "no plots and no HTML report" in done.stdout
    assert "pip install 'llmsched[report]'" in done.stdout
    assert (tmp_path / "out" / "result.json").is_file()
    assert not list(tmp_path.rglob("*.png"))


def test_the_environment_is_made_and_stepped_without_extras(tmp_path: Path) -> None:
    code = (
        "import gymnasium\n"
        "env = gymnasium.make('llmsched_env:LLMSched-v0')\n"
        "env.reset(seed=1)\n"
        "print(env.step(env.action_space.sample())[2])\n"
        "vector = gymnasium.make_vec('llmsched_env:LLMSched-v0', num_envs=2)\n"
        "vector.reset(seed=1)\n"
        "print(vector.step(vector.action_space.sample())[1].shape)"
    )
    done = core(code, tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "False\n(2,)\n")


@pytest.mark.parametrize(
    ("arguments", "what", "extra"),
    [
        ("train", "train", "train"),
        ("demo", "demo", "train"),
        ("evolve", "evolve", "train"),
        ("bench --only ppo", "bench: ppo", "train"),
        ("evaluate --report out.html", "report", "report"),
        ("devices --report out.html", "report", "report"),
        ("report .", "report", "report"),
        ("starvation --plot out.png", "plot", "report"),
        ("sensitivity --plot out.png", "plot", "report"),
        ("simulate --executor transformers:tiny --num-requests 2", "executor", "real"),
        ("validate --executor transformers:tiny", "executor", "real"),
        ("validate --against run.jsonl --plot out.png", "plot", "report"),
        ("profile --executor transformers:tiny", "executor", "real"),
        ("fit --from aiconfigurator", "fit --from aiconfigurator", "aiconfigurator"),
        ("evaluate --backend ray", "backend", "ray"),
    ],
)
def test_what_needs_an_extra_says_which_in_one_line(arguments: str, what: str, extra: str, tmp_path: Path) -> None:
    done = command(arguments, tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    first = EXTRAS[extra][0]
    assert line == (
        f"llmsched: {what}: expected the packages of llmsched[{extra}], found no {first}: "
        f"pip install 'llmsched[{extra}]'"
    )


def test_names_of_agents_say_which_extra_they_need(tmp_path: Path) -> None:
    done = core("import agents\nagents.TrainConfig, agents.Bundle, agents.evaluate\nagents.train", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "engine.errors.InputError: agents.train: expected the packages of llmsched[train], found no torch"
    )


def test_what_is_installed_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [missing(extra) for extra in EXTRAS if extra not in NOT_IN_ALL] == [None] * (len(EXTRAS) - len(NOT_IN_ALL))
    monkeypatch.setitem(EXTRAS, "moon", ("numpy", "nothing"))
    with pytest.raises(InputError, match=r"^x: expected the packages of llmsched\[moon\], found no nothing: pip"):
        need("moon", "x")


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        extra: {re.split(r"[^\w-]", requirement)[0].replace("-", "_") for requirement in requirements}
        for extra, requirements in project["optional-dependencies"].items()
    }
    assert {extra: declared[extra] for extra in EXTRAS} == {extra: set(names) for extra, names in EXTRAS.items()}


def test_every_package_is_shipped() -> None:
    """A folder that pyproject.toml forgets is there in a checkout, and missing in an installation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = (file.parent for name in OURS for file in (ROOT / name).rglob("__init__.py"))
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert found == set(project["tool"]["setuptools"]["packages"])
