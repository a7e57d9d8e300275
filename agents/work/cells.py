"""A file in which finished pieces of work (*cells*) survive an interruption."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.work.files import write_atomically
from engine.errors import InputError
from engine.files.reading import LARGE, decode, parse_json, read_bytes

FORMAT = "llmsched-cells/2"


class CellFile:
    """A jsonl file: a header that says what the cells belong to, then one line per finished cell, which says so too."""

    def __init__(
        self, path: Path, config_hash: str, resume: bool, key: Callable[[dict[str, Any]], object] = id
    ) -> None:
        """Start the file anew, or with `resume` keep its whole lines.

        Args:
            path: the file; whoever uses it holds its lock.
            config_hash: the configuration that the cells belong to.
            resume: keep the cells of this configuration.
            key: what tells cells apart; raises KeyError or TypeError for what is no cell.

        Raises:
            InputError: there is nothing to resume, or the cells belong to another configuration.
        """
        self.path, self.config_hash, self._key = path, config_hash, key
        self.cells: list[dict[str, Any]] = self._read() if resume else []
        header = {"format": FORMAT, "config_hash": config_hash}
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in [header, *map(self._signed, self.cells)]))

    def _signed(self, cell: dict[str, Any]) -> dict[str, Any]:
        return cell | {"config_hash": self.config_hash}

    def _read(self) -> list[dict[str, Any]]:
        lines = read_bytes(self.path, "cells to resume", LARGE).splitlines(keepends=True)
        # A line that ends without a newline was cut off while it was written.
        header, *found = [_parsed(line) for line in lines if line.endswith(b"\n")] or [None]
        self._check_header(header)
        cells = [cell for cell in found if cell is not None and self._is_ours(cell)]
        if left_out := len(found) - len(cells):
            print(
                f"llmsched: {self.path}: {left_out} lines are damaged or of another configuration; "
                "their cells are run again",
                file=sys.stderr,
            )
        return cells

    def _check_header(self, header: dict[str, Any] | None) -> None:
        if header is None:
            raise InputError(f"{self.path}: expected a cells file, got something else")
        if header.get("format") != FORMAT:
            raise InputError(f"{self.path}: expected a cells file with format {FORMAT!r}")
        if header.get("config_hash") != self.config_hash:
            raise InputError(
                f"{self.path}: expected cells of configuration {self.config_hash} to resume, "
                f"got those of {header.get('config_hash')}"
            )

    def _is_ours(self, cell: dict[str, Any]) -> bool:
        """Whether a line is a cell of this configuration; takes the note of that off it."""
        if cell.pop("config_hash", None) != self.config_hash:
            return False
        try:
            hash(self._key(cell))
        except (KeyError, TypeError):
            return False
        return True

    def append(self, cell: dict[str, Any]) -> None:
        """Add one finished cell; when this returns, it is on the disk.

        Raises:
            InputError: the file cannot be written.
        """
        line = json.dumps(self._signed(cell), allow_nan=False) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self.path}: cannot write ({error.strerror}); --resume goes on from there") from None


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        data = parse_json(decode(line, "cells", "a cell"), "cells")
    except InputError:
        return None
    return data if isinstance(data, dict) else None
