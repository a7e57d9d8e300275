"""A file in which finished pieces of work (*cells*) survive an interruption."""

import json
import os
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from agents.work.files import locked, write_atomically
from agents.work.records import as_json
from engine.errors import InputError
from engine.fields import from_mapping
from engine.files.reading import LARGE, decode, parse_json, read_bytes

FORMAT = "llmsched-cells/2"


class Keyed(Protocol):
    """A finished cell: a record (`agents.work.records`) that says which one it is."""

    @property
    def key(self) -> Hashable:
        """What tells it apart from other cells of its configuration."""


Cell = TypeVar("Cell", bound=Keyed)


def cell_of(kind: type[Cell], data: Mapping[str, Any]) -> Cell:
    """A cell of what a line holds.

    Raises:
        InputError: it is none.
    """
    return from_mapping(kind, data, "cell")


class CellFile(Generic[Cell]):
    """A jsonl file: a header that says what the cells belong to, then one line per finished cell, which says so too."""

    def __init__(
        self, path: Path, config_hash: str, kind: type[Cell] | Callable[[Mapping[str, Any]], Cell], resume: bool
    ) -> None:
        """Start the file anew, or with `resume` keep its whole lines.

        Args:
            path: the file; whoever uses it holds its lock.
            config_hash: the configuration that the cells belong to.
            kind: the record of a cell, or what makes one of a line and raises InputError where it cannot.
            resume: keep the cells of this configuration.

        Raises:
            InputError: there is nothing to resume, or the cells belong to another configuration.
        """
        self.path, self.config_hash = path, config_hash
        self._read: Callable[[Mapping[str, Any]], Cell] = partial(cell_of, kind) if isinstance(kind, type) else kind
        self.cells: list[Cell] = self._finished() if resume else []
        header = {"format": FORMAT, "config_hash": config_hash}
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in [header, *map(self._signed, self.cells)]))

    def _signed(self, cell: Cell) -> dict[str, Any]:
        return {**as_json(cell), "config_hash": self.config_hash}

    def _finished(self) -> list[Cell]:
        lines = read_bytes(self.path, "cells to resume", LARGE).splitlines(keepends=True)
        # A line that ends without a newline was cut off while it was written.
        header, *found = [_parsed(line) for line in lines if line.endswith(b"\n")] or [None]
        self._check_header(header)
        cells = [cell for line in found if (cell := self._cell(line)) is not None]
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

    def _cell(self, line: dict[str, Any] | None) -> Cell | None:
        """The cell of a line without the note whose it is; None where it is none, or of another configuration."""
        if line is None or line.pop("config_hash", None) != self.config_hash:
            return None
        try:
            return self._read(line)
        except InputError:
            return None

    def append(self, cell: Cell) -> None:
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


@contextmanager
def kept_cells(path: Path | None, config_hash: str, kind: type[Cell], resume: bool) -> Iterator[CellFile[Cell] | None]:
    """The file of finished cells, locked while the work goes on; None without a path.

    Args:
        path: the jsonl file.
        config_hash: the configuration that the cells belong to.
        kind: the record of a cell.
        resume: go on with the cells that the file already has.

    Raises:
        InputError: there is nothing to resume, the cells belong to another configuration, or others use the file.
    """
    if path is None:
        yield None
        return
    with locked(path):
        yield CellFile(path, config_hash, kind, resume)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        data = parse_json(decode(line, "cells", "a cell"), "cells")
    except InputError:
        return None
    return data if isinstance(data, dict) else None
