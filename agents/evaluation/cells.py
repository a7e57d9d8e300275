"""A file in which finished pieces of work (*cells*) survive an interruption."""

import json
import os
from pathlib import Path
from typing import Any

from agents.files import write_atomically
from engine.errors import InputError

FORMAT = "llmsched-cells/1"


class CellFile:
    """A jsonl file: a header that says what the cells belong to, then one line per finished cell."""

    def __init__(self, path: Path, config_hash: str, resume: bool) -> None:
        """Start the file anew, or with `resume` keep its whole lines.

        Raises:
            InputError: there is nothing to resume, or the cells belong to another configuration.
        """
        self.path = path
        self.cells: list[dict[str, Any]] = self._read(config_hash) if resume else []
        header = {"format": FORMAT, "config_hash": config_hash}
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in [header, *self.cells]))

    def _read(self, config_hash: str) -> list[dict[str, Any]]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        except OSError as error:
            raise InputError(f"{self.path}: expected cells to resume ({error.strerror})") from None
        try:
            # A line that ends without a newline was cut off while it was written.
            header, *cells = [json.loads(line) for line in lines if line.endswith("\n")]
        except ValueError:
            raise InputError(f"{self.path}: expected a cells file, got something else") from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise InputError(f"{self.path}: expected a cells file with format {FORMAT!r}")
        if header.get("config_hash") != config_hash:
            raise InputError(
                f"{self.path}: expected cells of configuration {config_hash} to resume, "
                f"got those of {header.get('config_hash')}"
            )
        return cells

    def append(self, cell: dict[str, Any]) -> None:
        """Add one finished cell; when this returns, it is on the disk."""
        with self.path.open("ab") as file:
            file.write((json.dumps(cell, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
