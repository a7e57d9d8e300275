"""The searches that `llmsched evolve` knows: of a policy for one server, and of a router (``kind: router``)."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from agents.learning.run_folder import read_about
from agents.learning.search.evolution import EvolutionConfig, evolve, shipped_recipe
from agents.learning.search.router_evolution import RouterEvolutionConfig, evolve_router, shipped_router_recipe
from engine.errors import InputError
from engine.files.yaml_text import read_yaml

SHIPPED = {"pretrained": shipped_recipe, "pretrained-router": shipped_router_recipe}
"""Recipes by the name of what they made."""

AnySearch = EvolutionConfig | RouterEvolutionConfig


def _kind(data: object) -> type[EvolutionConfig] | type[RouterEvolutionConfig]:
    """The class of a configuration in a file."""
    return RouterEvolutionConfig if isinstance(data, dict) and data.get("kind") == "router" else EvolutionConfig


def _check(kind: type[AnySearch], changes: dict[str, Any]) -> None:
    """Find an option that this kind of search has not.

    Raises:
        InputError: there is one.
    """
    if unknown := set(changes) - {field.name for field in fields(kind)}:
        raise InputError(f"evolve: expected options of a router's search, got {unknown.pop()}, which is of a policy's")


def read_search(recipe: str, **changes: Any) -> AnySearch:
    """The configuration of a recipe that ships, or of a YAML file.

    Raises:
        InputError: no such recipe, an unknown key, or a value that does not fit.
    """
    path = SHIPPED[recipe]() if recipe in SHIPPED else Path(recipe)
    kind = _kind(read_yaml(path, "a recipe"))
    _check(kind, changes)
    return kind.from_yaml(path, **changes)


def saved_search(run_dir: Path, /, **changes: Any) -> AnySearch:
    """The configuration of the search in a folder.

    Raises:
        InputError: the folder holds none, or a change does not fit.
    """
    kind = _kind(read_about(run_dir)["config"])
    _check(kind, changes)
    return replace(kind.of_run(run_dir), **changes)


def run_search(config: AnySearch, progress: Callable[[str], object], command: str, resume: bool) -> Path:
    """Search; returns the run folder (`evolve`, `evolve_router`)."""
    if isinstance(config, RouterEvolutionConfig):
        return evolve_router(config, progress, command, resume)
    return evolve(config, progress, command, resume)


def next_command(config: AnySearch) -> str:
    """How what was found is compared with others."""
    place = config.run_dir / "final"
    if isinstance(config, RouterEvolutionConfig):
        return f"llmsched route --routers least_tokens,{place}"
    return f"llmsched evaluate --policies slai,slackfit:tuned,{place}"
