"""Trace files as columns: opened, recognised, read and screened; each is parsed once, until it changes."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TextIO

from engine.demand.raw_trace import WHAT, RawTrace, Start, TraceFile
from engine.demand.trace_formats import format_of
from engine.demand.trace_options import AS_IT_IS, TraceOptions
from engine.demand.trace_rows import TraceColumns, screen
from engine.errors import InputError
from engine.files.lines import lines_of, open_text

_START = 1 << 16
"""Characters from which the format is found."""


def read_columns(path: str | Path, options: TraceOptions = AS_IT_IS, limit: int | None = None) -> TraceColumns:
    """The requests in a trace file as columns; a file is parsed once, until it changes.

    Args:
        path: the file.
        options: how its rows are read.
        limit: rows with recorded times to take; None: all.

    Raises:
        InputError: as `read_trace`.
    """
    path = Path(path)
    try:
        status = path.stat()
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError):
        version = (0, 0, 0)  # whoever opens it says why it cannot be read
    parsing = replace(options, rate_scale=1.0)  # which changes nothing of what is read
    columns = _columns(path, version, parsing, options.limit(limit))
    if limit is None or columns.arrival is None or len(columns.prompt) <= limit:
        return columns
    first = slice(0, limit)
    arrival, prompt, output = columns.arrival[first], columns.prompt[first], columns.output[first]
    return TraceColumns(arrival, prompt, output, columns.note, columns.left_out)


@lru_cache(maxsize=4)
def _columns(path: Path, version: tuple[int, ...], options: TraceOptions, limit: int | None) -> TraceColumns:
    columns = screen(_raw(path, options, limit), options)
    for array in (columns.arrival, columns.prompt, columns.output):
        if array is not None:
            array.flags.writeable = False
    return columns


def has_times(path: str | Path, options: TraceOptions = AS_IT_IS) -> bool:
    """Whether a trace file records when its requests arrived.

    Raises:
        InputError: it cannot be read, is not a trace, or needs a tokenizer.
    """
    return _raw(Path(path), replace(options, unservable="skip"), 1).has_times


def _raw(path: Path, options: TraceOptions, limit: int | None) -> RawTrace:
    with open_text(path, WHAT) as file:
        start = _start(path, file)
        form = format_of(start)
        if options.tokenizer is not None and not form.is_text:
            raise InputError(
                f"tokenizer: expected conversations beside it, which are text; {path} has lengths in tokens"
            )
        file.seek(0)
        return form.read(TraceFile(path, file, start, options, limit))


def _start(path: Path, file: TextIO) -> Start:
    """The beginning of an open file.

    Raises:
        InputError: it cannot be read, or is no text (names the line).
    """
    try:
        return Start(file.read(_START))
    except UnicodeDecodeError:
        file.seek(0)
        for _ in lines_of(file, path, WHAT):  # names the line
            pass
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot read {WHAT} ({error.strerror})") from None
