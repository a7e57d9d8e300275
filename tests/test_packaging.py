"""The built wheel: what it contains, and that it runs outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "baselines", "llmsched_env", "agents")
IGNORED = shutil.ignore_patterns("__pycache__", "*.py[co]", ".*")

pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: an old build folder cannot add files to it, and none is left behind."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=IGNORED)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    run(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", ".", folder=tree)
    (built,) = (tree / "wheels").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's contents and command, to be put ahead of the checkout on the path."""
    site = tmp_path_factory.mktemp("installed") / "site"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", "--target", site, wheel, folder=site.parent)
    return site


def test_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    ours = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert shipped == ours
    assert {f"{name}/py.typed" for name in PACKAGES} <= shipped


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [
        ("engine/data/", ".json"),
        ("baselines/data/", ".json"),
        ("agents/learning/hyperparams/", ".yml"),
        ("agents/learning/pretrained/", ".safetensors"),
        ("agents/reporting/templates/", ""),
    ],
)
def test_wheel_holds_data(wheel: Path, folder: str, suffix: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.startswith(folder) and name.endswith(suffix)]


def test_wheel_metadata_names_licence_command_and_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (info,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        assert "llmsched = agents.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert b"Apache License" in archive.read(f"{info}/licenses/LICENSE")
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("Provides-Extra") == [
        *("train", "report", "real", "aiconfigurator", "ray", "pettingzoo", "vllm", "all", "docs", "dev")
    ]


def test_installed_wheel_runs_the_command(installed: Path) -> None:
    shown = run(installed / "bin" / "llmsched", "--help", folder=installed.parent, PYTHONPATH=str(installed))
    assert "simulate" in shown
    assert "evaluate" in shown


def test_installed_wheel_makes_the_environment(installed: Path) -> None:
    code = (
        "import engine, gymnasium\n"
        "env = gymnasium.make('llmsched_env:LLMSched-v0')\n"
        "env.reset(seed=1)\n"
        "env.step(env.action_space.sample())\n"
        "print(engine.__file__)"
    )
    shown = run(sys.executable, "-c", code, folder=installed.parent, PYTHONPATH=str(installed))
    assert shown.strip() == str(installed / "engine" / "__init__.py")
