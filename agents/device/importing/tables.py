"""CSV tables of others: cells by the names of their columns, each row with its place for messages."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from engine.errors import InputError
from engine.files.lines import read_csv


class Row(NamedTuple):
    """A line of a table."""

    where: str
    """File and line, for messages."""
    cells: dict[str, str]
    """Cells by column."""


def read_rows(path: Path, what: str, needed: Sequence[str]) -> list[Row]:
    """The rows of a table, whatever the order of its columns.

    Args:
        path: the file.
        what: what it should hold, for messages.
        needed: columns that must be there; there may be more.

    Raises:
        InputError: not a csv file, a column is missing or there twice, or a row is longer or shorter than the first.
    """
    first, *rest = read_csv(path, what) or [(1, [])]
    heads = first[1]
    if absent := [name for name in needed if name not in heads]:
        raise InputError(f"{path}, line 1: expected the columns {', '.join(needed)}, found no {absent[0]}")
    if twice := [name for name in needed if heads.count(name) > 1]:
        raise InputError(f"{path}, line 1: expected each column once, got {twice[0]} twice")
    return [Row(f"{path}, line {line}", _by_name(heads, row, f"{path}, line {line}")) for line, row in rest]


def _by_name(heads: Sequence[str], row: Sequence[str], where: str) -> dict[str, str]:
    if len(row) != len(heads):
        raise InputError(f"{where}: expected {len(heads)} cells, got {len(row)}")
    return dict(zip(heads, row, strict=True))
