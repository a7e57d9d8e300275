"""Recipes: the configuration of a training or a search as a YAML file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from engine.fields import from_mapping
from engine.files.yaml_text import read_yaml


@dataclass(frozen=True)
class Recipe:
    """What configurations share that are read from a mapping of their fields."""

    @classmethod
    def from_yaml(cls, path: Path, **changes: Any) -> Self:
        """The configuration of a YAML file, a mapping of these fields.

        Args:
            path: of the file.
            changes: fields that are to differ.

        Raises:
            InputError: no such file, an unknown key, or a value that does not fit.
        """
        data = read_yaml(path, "a recipe")
        return from_mapping(cls, {**data, **changes} if isinstance(data, dict) else data, str(path))
