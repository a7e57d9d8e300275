"""Files of people that are read line by line: logs of JSON lines, csv, traces of any length.

As in `engine.files.reading`, a reader returns or raises `InputError` with one line, and never waits.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from engine.errors import InputError
from engine.files.reading import LARGE, MIB, TRACE, check_magic, open_file, parse_json, too_large

MAX_LINE = 4 * MIB
"""Characters of one line."""


def open_text(path: str | Path, what: str, limit: int = TRACE) -> TextIO:
    """Open a regular file as UTF-8 text to be read by `lines_of`, without a byte order mark.

    Raises:
        InputError: as `open_file`, or a well-known binary format.
    """
    file = open_file(path, what, limit)
    try:
        check_magic(file.peek(8)[:8], path, what)
    except OSError as error:
        file.close()
        raise InputError(f"{path}: cannot read {what} ({error.strerror})") from None
    except BaseException:
        file.close()
        raise
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline="")


def lines_of(file: TextIO, where: str | Path, what: str) -> Iterator[tuple[int, str]]:
    """The lines of an open file with their numbers (from 1), ends of line kept.

    Raises:
        InputError: a line beyond `MAX_LINE`, another encoding, binary data, or a file that grows beyond its size.
    """
    number, total = 0, 0
    while True:
        try:
            line = file.readline(MAX_LINE + 1)
        except UnicodeDecodeError as error:
            got = f"byte 0x{error.object[error.start]:02x}"
            # What was decoded at once is many lines: the line is found anew.
            raise InputError(f"{where}, {_undecodable(where)}: expected UTF-8 text, got {got}") from None
        except OSError as error:
            raise InputError(f"{where}: cannot read {what} ({error.strerror})") from None
        if not line:
            return
        number, total = number + 1, total + len(line)
        if len(line) > MAX_LINE:
            raise InputError(f"{where}, line {number}: expected at most {MAX_LINE} characters in a line, got more")
        if "\0" in line:
            raise InputError(f"{where}, line {number}: expected {what} as text, got a NUL character (a binary file?)")
        if total > TRACE:
            too_large(where, what, TRACE, total)
        yield number, line


def _undecodable(where: str | Path) -> str:
    """The first line that is not UTF-8, in words."""
    with open_file(where, "text", TRACE) as file:
        for number, line in enumerate(iter(lambda: file.readline(4 * MAX_LINE), b""), 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"line {number}"
    return "somewhere"


def csv_rows(file: TextIO, where: str | Path, what: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of an open csv file with the number of their last line; empty lines are left out.

    Raises:
        InputError: as `lines_of`; a cell beyond 128 KiB (a quotation mark that is never closed), not csv.
    """
    reader = csv.reader((line for _, line in lines_of(file, where, what)), strict=True)
    try:
        for row in reader:
            if row and row != [""]:
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{where}, line {reader.line_num}: expected csv, got something else ({error})") from None


def read_csv(path: str | Path, what: str, limit: int = LARGE) -> list[tuple[int, list[str]]]:
    """All rows of a csv file with their line numbers, the header included.

    Raises:
        InputError: as `csv_rows`.
    """
    with open_text(path, what, limit) as file:
        return list(csv_rows(file, path, what))


def read_jsonl(path: str | Path, what: str, limit: int = LARGE) -> Iterator[tuple[int, Any]]:
    """The values in a file of one JSON value per line, with their line numbers; empty lines are left out.

    Raises:
        InputError: as `lines_of` and `parse_json`.
    """
    with open_text(path, what, limit) as file:
        for number, line in lines_of(file, path, what):
            if not line.isspace():
                yield number, parse_json(line, f"{path}, line {number}")
