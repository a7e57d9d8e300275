"""The import arrows between packages and between the rooms of a package, and which third parties each may load.

Sources are parsed, not run, so an import inside a function counts too. What importing really loads is
checked in fresh interpreters.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import agents
from engine.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]

OURS = {
    "engine": {"engine"},
    "baselines": {"baselines", "engine"},
    "llmsched_env": {"llmsched_env", "engine", "baselines"},
    "agents": {"agents", "engine", "baselines", "llmsched_env"},
}

ROOMS = {
    "engine": (
        *("errors", "extras", "files", "machine", "ranges", "fields", "spec", "own_code", "compiled", "config"),
        *("demand", "server", "device", "scenarios", "runs", "cluster", "__init__"),
    ),
    "llmsched_env": (
        *(
            "observation",
            "privileged",
            "reward",
            "own",
            "actions",
            "asking",
            "inputs",
            "config",
            "crew",
            "rows",
            "planning",
            "worlds",
            "step",
            "episode",
        ),
        *("live", "generators", "state", "render", "presets", "fleet", "autoreset"),
        *("env", "vector", "routing", "__init__"),
    ),
    "agents": (
        *(
            "work",
            "learning",
            "policies",
            "routers",
            "source",
            "options",
            "fleet_options",
            "suite_options",
            "evaluation",
        ),
        *("device", "vllm", "bench", "studies", "reporting", "commands", "help", "cli", "__init__"),
    ),
}
"""Folders and single files of a package: each may import itself and those before it."""

ON_LOAD = {
    "engine": {"numpy", "numba"},
    "baselines": {"numpy", "numba"},
    "llmsched_env": {"numpy", "numba", "gymnasium"},
}
"""Third parties that importing a package may load; `agents` has its own rule."""

IN_FUNCTIONS = {"engine": {"scipy", "tokenizers", "yaml"}}
"""Third parties that the package may additionally import inside functions."""

GPU_ONLY = {"torch", "transformers"}
GPU_FILES = {
    f"engine/device/real/{name}.py" for name in ("attention", "clock", "executor", "forward", "models", "placing")
}
"""Inside engine only these files may know those packages; others import these files inside functions."""

EXTRA_FILES = {
    "train": ("agents/learning/ppo/", "agents/bench/ppo.py", "agents/studies/learner_variants.py"),
    "real": ("agents/device/check.py",),
    "pettingzoo": ("llmsched_env/routing/aec.py",),
}
"""Files that only run where an extra is installed: its packages load with them."""

IMPORT_NAMES = {"stable-baselines3": "stable_baselines3", "pyyaml": "yaml"}
"""Distributions whose import name differs."""


HOST, HOSTED = "vllm", "agents/vllm/"
"""A server that is no extra, for it needs an environment of its own, and the room that only runs inside it."""

ABSENT = {name for names in EXTRAS.values() for name in names}
"""Packages of the extras, which must load with no module that works without them."""


class Import(NamedTuple):
    """One imported module as a source file states it."""

    module: str
    line: int
    on_load: bool  # runs when the file is imported: neither in a function nor for type checkers only
    typing_only: bool  # under `if TYPE_CHECKING`

    @property
    def top(self) -> str:
        """The top-level package."""
        return self.module.partition(".")[0]


def declared_imports() -> set[str]:
    """Import names of the dependencies in pyproject.toml that need no extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [re.split(r"[^\w-]", requirement)[0] for requirement in project["dependencies"]]
    return {IMPORT_NAMES.get(name, name) for name in names}


def sources(package: str) -> dict[str, str]:
    """Text of every source file of a package by its path from the root."""
    files = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / package).rglob("*.py"))}
    assert files, f"{package} has no source files"
    return {name: path.read_text(encoding="utf-8") for name, path in files.items()}


def modules_of(node: ast.AST, file: str) -> list[str]:
    """Modules that one statement or call imports; relative ones are resolved from the file's folder."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, level=0):
            return [module or ""]
        case ast.ImportFrom(module=module, level=level):
            folder = file.split("/")[:-level]
            return [".".join([*folder, *([module] if module else [])])]
        case ast.Call(
            func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            return [file.split("/")[0] if name.startswith(".") else name]
    return []


def imports_of(text: str, file: str) -> list[Import]:
    """Every import of a source file, in functions and calls of `import_module` too."""

    def walk(node: ast.AST, on_load: bool, typing_only: bool) -> Iterator[Import]:
        for module in modules_of(node, file):
            yield Import(module, getattr(node, "lineno", 0), on_load, typing_only)
        if isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING":
            for statement in node.body:
                yield from walk(statement, False, True)
            for statement in node.orelse:
                yield from walk(statement, on_load, typing_only)
            return
        in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, on_load and not in_function, typing_only)

    return list(walk(ast.parse(text), True, False))


def room(parts: list[str]) -> str:
    """Where in its package something is, given as [package, folder or module, ...]."""
    return parts[1] if len(parts) > 1 else "__init__"


def arrow_fault(file: str, found: Import) -> str | None:
    """Why this file may not import this package or room of ours; None when it may."""
    package = file.split("/")[0]
    if found.top not in OURS[package]:
        return f"{package} may not import {found.top}"
    if found.on_load and file not in GPU_FILES and f"{found.module.replace('.', '/')}.py" in GPU_FILES:
        return f"{found.module} must be imported inside the function that needs it"
    if found.top == package and package in ROOMS:
        rooms = ROOMS[package]
        here, there = room(file.removesuffix(".py").split("/")), room(found.module.split("."))
        if not {here, there} <= set(rooms):
            return f"{here} or {there} has no place in ROOMS"
        if rooms.index(there) > rooms.index(here):
            return f"{package}: {here} may not import {there}"
    return None


def third_party_fault(file: str, found: Import) -> str | None:
    """Why this file may not import this third party here; None when it may."""
    package = file.split("/")[0]
    if package == "agents":
        if found.top in declared_imports():
            return None
        if found.top == HOST and file.startswith(HOSTED):
            return None
        if not any(found.top in names for names in EXTRAS.values()):
            return f"{found.top} is not a dependency in pyproject.toml"
        if found.on_load and not any(found.top in EXTRAS[e] and file.startswith(f) for e, f in EXTRA_FILES.items()):
            return f"{found.top} is in an extra and must be imported inside the function that needs it"
        return None
    if found.top in GPU_ONLY:
        return None if file in GPU_FILES else f"{found.top} belongs to engine/device/real/executor.py"
    if found.top in ON_LOAD[package] or any(found.top in EXTRAS[e] and file in f for e, f in EXTRA_FILES.items()):
        return None
    if found.top in IN_FUNCTIONS.get(package, set()):
        return f"{found.top} must be imported inside the function that needs it" if found.on_load else None
    return f"{package} may not import {found.top}"


def faults(files: dict[str, str]) -> list[str]:
    """Every import against the arrows or the third-party limits, as `file:line: reason`."""
    found = []
    for file, text in files.items():
        for item in imports_of(text, file):
            if item.top in sys.stdlib_module_names or (item.typing_only and item.top not in OURS):
                continue
            reason = arrow_fault(file, item) if item.top in OURS else third_party_fault(file, item)
            if reason:
                found.append(f"{file}:{item.line}: {reason}")
    return found


def run_python(code: str, folder: Path) -> str:
    """Output of a fresh interpreter started in a folder."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", OURS)
def test_package_imports_only_along_the_arrows(package: str) -> None:
    assert faults(sources(package)) == []


@pytest.mark.parametrize("package", ROOMS)
def test_every_part_of_a_package_has_its_place_in_rooms(package: str) -> None:
    assert {name.split("/")[1].removesuffix(".py") for name in sources(package)} - {"data"} == set(ROOMS[package])


@pytest.mark.parametrize(
    "form",
    [
        "import {0}",
        "from {0} import name",
        "def f():\n    import {0}",
        "if TYPE_CHECKING:\n    from {0} import name",
        "import importlib\nimportlib.import_module('{0}')",
    ],
)
@pytest.mark.parametrize(
    ("file", "module", "reason"),
    [
        ("engine/server/core.py", "baselines.slai", "engine may not import baselines"),
        ("engine/server/core.py", "agents", "engine may not import agents"),
        ("baselines/slai.py", "llmsched_env", "baselines may not import llmsched_env"),
        ("llmsched_env/env.py", "agents.learning.learned.policy", "llmsched_env may not import agents"),
        ("agents/learning/ppo/train.py", "agents.evaluation.setup", "agents: learning may not import evaluation"),
        ("agents/studies/tuning.py", "agents.reporting", "agents: studies may not import reporting"),
        ("agents/options.py", "agents", "agents: options may not import __init__"),
        ("agents/learning/ppo/train.py", "agents.utils", "has no place in ROOMS"),
        ("engine/demand/requests.py", "engine.server.state", "engine: demand may not import server"),
    ],
)
def test_import_against_the_arrows_is_reported(file: str, module: str, reason: str, form: str) -> None:
    assert [reason in line for line in faults({file: form.format(module)})] == [True]


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("engine/device/fit.py", "import scipy.optimize", "scipy must be imported inside the function"),
        ("engine/device/fit.py", "def f():\n    import torch", "torch belongs to engine/device/real/executor.py"),
        (
            "engine/server/core.py",
            "from engine.device.real.executor import build",
            "engine.device.real.executor must be imported inside the function",
        ),
        (
            "agents/cli.py",
            "import engine.device.real.attention",
            "engine.device.real.attention must be imported inside the function",
        ),
        ("engine/server/core.py", "import pandas", "engine may not import pandas"),
        ("baselines/slai.py", "import scipy", "baselines may not import scipy"),
        ("llmsched_env/env.py", "def f():\n    import torch", "torch belongs to engine/device/real/executor.py"),
        ("agents/cli.py", "import matplotlib.pyplot as plt", "matplotlib is in an extra and must be imported inside"),
        ("agents/learning/search/evolution.py", "import cma", "cma is in an extra and must be imported inside"),
        ("agents/learning/ppo/train.py", "import jinja2", "jinja2 is in an extra and must be imported inside"),
        ("agents/work/ray_backend.py", "import ray", "ray is in an extra and must be imported inside"),
        ("agents/learning/ppo/train.py", "import dask", "dask is not a dependency"),
        ("agents/studies/reproduce.py", "def f():\n    import pandas", "pandas is not a dependency"),
        ("agents/learning/ppo/train.py", "import requests", "requests is not a dependency"),
    ],
)
def test_wrong_third_party_is_reported(file: str, text: str, reason: str) -> None:
    assert [reason in line for line in faults({file: text})] == [True]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "engine/demand/part.py",
            "from ..errors import InputError\nfrom . import other\nimport json, numpy.random",
        ),
        ("engine/device/fit.py", "def f():\n    from scipy import optimize"),
        ("engine/device/real/executor.py", "import torch, transformers\nfrom engine.device.real.attention import NAME"),
        ("agents/commands/validate.py", "def f():\n    from engine.device.real.executor import make_executor"),
        ("baselines/slai.py", "from engine.server.policy import Policy\nfrom numba import njit"),
        ("llmsched_env/env.py", "import gymnasium, engine, baselines"),
        ("agents/cli.py", "if typing.TYPE_CHECKING:\n    import torch\ndef f():\n    import matplotlib"),
        ("agents/learning/ppo/rollout.py", "import torch, stable_baselines3"),
        (
            "agents/evaluation/capacity.py",
            "from agents.evaluation.setup import run_tasks\nfrom agents.options import Source",
        ),
        ("agents/commands/demo.py", "def f():\n    from agents.learning.ppo.train import train"),
    ],
)
def test_allowed_import_is_not_reported(file: str, text: str) -> None:
    assert faults({file: text}) == []


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (
            "engine, baselines, llmsched_env",
            {*ABSENT, "scipy.special", "scipy.stats", "rich", "tyro", "safetensors"},
        ),
        ("agents, agents.cli", {*ABSENT, "scipy.special", "scipy.stats", "tyro"}),
        ("agents.commands.simulate, agents.commands.evaluate", ABSENT),
    ],
)
def test_import_loads_nothing_heavy(modules: str, heavy: set[str]) -> None:
    loaded = json.loads(run_python(f"import {modules}, sys, json; print(json.dumps(list(sys.modules)))", ROOT))
    assert set(modules.split(", ")) <= set(loaded)
    assert heavy & set(loaded) == set()


def test_every_public_name_of_agents_is_there() -> None:
    assert set(agents.__all__) == set(agents._MODULES) <= set(dir(agents))
    for name in agents.__all__:
        assert getattr(agents, name).__name__ == name
    with pytest.raises(AttributeError, match="'agents' has no attribute 'nothing'"):
        agents.nothing  # noqa: B018


def test_packages_outside_the_checkout_are_ours(tmp_path: Path) -> None:
    """`agents` and `baselines` are also published names: what a user imports must be what we installed."""
    code = f"import json, importlib.util as u; print(json.dumps([u.find_spec(n).origin for n in {list(OURS)}]))"
    ours = [str(ROOT / name / "__init__.py") for name in OURS]
    assert json.loads(run_python(code, tmp_path)) == ours, "another distribution's packages come first"
    assert json.loads(run_python(code, ROOT)) == ours
