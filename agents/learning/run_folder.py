"""The folder of a run: its ``config.json``, from which alone the run can be resumed."""

import json
from pathlib import Path
from typing import Any, TypeVar

from agents.work.files import write_atomically
from engine.errors import InputError
from engine.fields import from_mapping
from engine.files.reading import kind_of, read_mapping

CONFIG_FILE = "config.json"

Config = TypeVar("Config")


def plain(value: object) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value))


def write_about(folder: Path, data: dict[str, Any]) -> None:
    """Write the description of a run.

    Raises:
        InputError: the folder cannot be written, or a number in the configuration is not finite.
    """
    try:
        text = json.dumps(data, indent=2, allow_nan=False)
    except ValueError:
        raise InputError(f"{Path(folder) / CONFIG_FILE}: expected a configuration with finite numbers") from None
    write_atomically(Path(folder) / CONFIG_FILE, text + "\n")


def read_about(folder: Path) -> dict[str, Any]:
    """The description of the run in a folder, with its configuration under ``config``.

    Raises:
        InputError: there is none, or the file is damaged or something else.
    """
    path = Path(folder) / CONFIG_FILE
    data = read_mapping(path, "the configuration of a run")
    if not isinstance(data.get("config"), dict):
        raise InputError(f"{path}: expected the configuration of a run, a mapping under 'config'")
    return data


def saved_config(cls: type[Config], folder: Path) -> Config:
    """The configuration of the run in a folder as a record of `cls`; what the file leaves out keeps its default.

    Raises:
        InputError: no run, an unknown key, or a value of the wrong kind or out of range.
    """
    return from_mapping(cls, read_about(folder)["config"], str(Path(folder) / CONFIG_FILE))


def difference(now: dict[str, Any], saved: dict[str, Any], free: tuple[str, ...]) -> str | None:
    """The first entry, but for the free ones, in which two configurations differ."""
    now, saved = plain(now), plain(saved)
    return next((key for key in {**now, **saved} if key not in free and now.get(key) != saved.get(key)), None)


def refuse_difference(now: dict[str, Any], saved: dict[str, Any], free: tuple[str, ...], folder: Path) -> None:
    """Check that a run would go on with the configuration that it began with.

    Raises:
        InputError: it would not; names the entry and what it was.
    """
    if (key := difference(now, saved, free)) is not None:
        was, got = (kind_of(plain(data).get(key)) for data in (saved, now))
        raise InputError(f"resume: {key}: expected {was} as in {folder / CONFIG_FILE}, got {got}")
