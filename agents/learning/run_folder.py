"""The folder of a run: its ``config.json``, from which alone the run can be resumed."""

import hashlib
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from agents.files import write_atomically
from engine.errors import InputError

CONFIG_FILE = "config.json"
_LIMIT = 16 << 20

Config = TypeVar("Config")


def digest(data: dict[str, Any]) -> str:
    """16 hexadecimal digits of the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value))


def write_about(folder: Path, data: dict[str, Any]) -> None:
    """Write the description of a run.

    Raises:
        InputError: the folder cannot be written.
    """
    write_atomically(Path(folder) / CONFIG_FILE, json.dumps(data, indent=2) + "\n")


def read_about(folder: Path) -> dict[str, Any]:
    """The description of the run in a folder, with its configuration under ``config``.

    Raises:
        InputError: there is none, or the file is damaged or something else.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        if not path.is_file() or path.stat().st_size > _LIMIT:
            raise InputError(f"{path}: expected the configuration of a run, found none")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the configuration of the run ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: expected the configuration of a run as JSON, got something else") from None
    if not isinstance(data, dict) or not isinstance(data.get("config"), dict):
        raise InputError(f"{path}: expected the configuration of a run (a mapping with 'config')")
    return data


def build(cls: type[Config], data: dict[str, Any], where: Path, **given: Any) -> Config:
    """A configuration record from plain data; what is absent keeps its default.

    Args:
        cls: a frozen dataclass all of whose fields have defaults.
        data: its fields as JSON gives them.
        where: file, for messages.
        given: fields that are not in the data.

    Raises:
        InputError: an unknown key, or a value of the wrong kind or out of range.
    """
    default, values = cls(), {}
    known = {f.name: getattr(default, f.name) for f in fields(cls)}  # type: ignore[arg-type]
    for key, value in data.items():
        if key not in known:
            raise InputError(f"{where}: unknown key {key[:60]!r}")
        values[key] = _fit(key, value, known[key], where)
    try:
        return cls(**(values | given))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _fit(key: str, value: Any, default: Any, where: Path) -> Any:
    """A value from JSON in the type of the field's default."""
    if is_dataclass(default):
        return type(default).from_dict(value)  # type: ignore[union-attr]
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(_fit(key, part, default[0] if default else "", where) for part in value)
    kind = type(default)
    if isinstance(default, Path) and isinstance(value, str):
        return Path(value)
    if type(value) is kind or (kind is float and type(value) is int and abs(value) < 1 << 53):
        return value
    raise InputError(f"{where}: {key}: expected {kind.__name__}, got {str(value)[:40]!r}")


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
        was, got = (_shown(plain(data).get(key)) for data in (saved, now))
        raise InputError(f"resume: {key}: expected {was} as in {folder / CONFIG_FILE}, got {got}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
