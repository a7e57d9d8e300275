"""Writing results: whole files or none, strict JSON."""

import json
import os
from pathlib import Path
from typing import Any

from engine.errors import InputError


def json_text(data: dict[str, Any]) -> str:
    """A result as strict JSON, as all commands write it."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file completely or not at all, making its folder.

    Raises:
        InputError: the place cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot write ({error.strerror})") from None
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


def check_writable(*paths: Path | None) -> None:
    """Find out before a long run that its results could not be written.

    Raises:
        InputError: the folder of a path cannot be made or written, or the path is a folder.
    """
    for path in filter(None, paths):
        if path.is_dir():
            raise InputError(f"{path}: expected a file to write, got a folder")
        probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
        write_atomically(probe, b"")
        probe.unlink(missing_ok=True)
