"""Parsers of trace files: each turns a public format into the same columns and knows the line of every row.

Formats: `num_prefill_tokens,num_decode_tokens` with and without `arrived_at` (Vidur, Sarathi-Serve, SLAI);
Azure LLM inference traces; BurstGPT; Mooncake jsonl. ShareGPT conversations are in `engine.sharegpt`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeVar

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.requests import INT32_MAX

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
T = TypeVar("T")

ISO_UTC = re.compile(r"((?:19|20)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?)(?:Z|\+00:00)?")


@dataclass(frozen=True, eq=False)
class TraceColumns:
    """The rows of a trace file in file order, as arrays of equal length n."""

    arrival: FloatArray | None
    """Arrival times counted from the first row, float64[n] (s), non-decreasing; None if there are none."""
    prompt: Int64Array
    """Prompt lengths, int64[n] (tokens), >= 1."""
    output: Int64Array
    """Output lengths, int64[n] (tokens), >= 1."""
    note: str
    """Format, and what was left out, for the source line of the requests."""


@dataclass(frozen=True)
class CsvFormat:
    """Columns of a csv format."""

    name: str
    """Name of the format in source lines."""
    prompt: str
    """Column of prompt lengths (tokens)."""
    output: str
    """Column of output lengths (tokens)."""
    arrival: str = ""
    """Column of arrival times; empty for lengths only."""
    iso_times: bool = False
    """Whether arrival times are ISO 8601 in UTC; otherwise seconds."""
    zero_output_failed: bool = False
    """Whether an output of 0 tokens marks a failed request, to be left out."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the format needs."""
        return (*((self.arrival,) if self.arrival else ()), self.prompt, self.output)


# Of two formats that fit a header, the earlier one counts.
CSV_FORMATS = (
    CsvFormat("timed lengths csv", "num_prefill_tokens", "num_decode_tokens", "arrived_at"),
    CsvFormat("lengths csv", "num_prefill_tokens", "num_decode_tokens"),
    CsvFormat("Azure csv", "ContextTokens", "GeneratedTokens", "TIMESTAMP", iso_times=True),
    CsvFormat("BurstGPT csv", "Request tokens", "Response tokens", "Timestamp", zero_output_failed=True),
)


def read_csv(path: Path, file: TextIO, limit: int | None = None) -> TraceColumns:
    """Read a csv trace whose header names one of `CSV_FORMATS`; further columns are ignored.

    Args:
        path: name of the file, for messages.
        file: the open file, at its beginning.
        limit: stop after this many rows of a timed format; a file of lengths is always read whole.

    Raises:
        InputError: unknown columns, no rows, a truncated row, or a value out of range or order (names file
            and line).
    """
    rows = _csv_rows(path, file)
    header = [name.strip() for name in next(rows, (1, []))[1]]
    form = _csv_format(path, header)
    wanted = [header.index(column) for column in form.columns]
    limit = limit if form.arrival else None
    cells: list[list[str]] = []
    lines: list[int] = []
    failed = 0
    for line, row in rows:
        if len(row) != len(header):
            raise InputError(f"{path}, line {line}: expected {len(header)} columns, got {len(row)} (truncated row?)")
        picked = [row[index] for index in wanted]
        if form.zero_output_failed and _is_zero(picked[-1]):
            failed += 1
            continue
        cells.append(picked)
        lines.append(line)
        if len(cells) == limit:
            break
    if not cells:
        left_out = f" besides {failed} failed requests" if failed else ""
        raise InputError(f"{path}: expected at least one row of data, got none{left_out}")
    *times, prompts, outputs = (list(column) for column in zip(*cells, strict=True))
    prompt = _tokens(path, lines, form.prompt, _numbers(path, lines, form.prompt, prompts))
    output = _tokens(path, lines, form.output, _numbers(path, lines, form.output, outputs))
    arrival = _from_first(path, lines, form.arrival, _seconds(path, lines, form, times[0])) if times else None
    note = f"{form.name}, {failed} failed requests left out" if failed else form.name
    return TraceColumns(arrival, prompt, output, note)


def read_mooncake(path: Path, file: TextIO, limit: int | None = None) -> TraceColumns:
    """Read a Mooncake trace: lines of JSON with `timestamp` (ms), `input_length`, `output_length` (tokens).

    Args:
        path: name of the file, for messages.
        file: the open file, at its beginning.
        limit: stop after this many rows.

    Raises:
        InputError: a line that is not such an object, no rows, or a value out of range or order (names file
            and line).
    """
    keys = ("timestamp", "input_length", "output_length")
    rows: list[list[float]] = []
    lines: list[int] = []
    for line, text in enumerate(file, start=1):
        if text.isspace():
            continue
        rows.append(_mooncake_row(path, line, text, keys))
        lines.append(line)
        if len(rows) == limit:
            break
    if not rows:
        raise InputError(f"{path}: expected at least one row of data, got none")
    columns = np.array(rows, dtype=np.float64)
    prompt = _tokens(path, lines, keys[1], columns[:, 1])
    output = _tokens(path, lines, keys[2], columns[:, 2])
    return TraceColumns(_from_first(path, lines, keys[0], columns[:, 0] / 1000.0), prompt, output, "Mooncake jsonl")


def _mooncake_row(path: Path, line: int, text: str, keys: tuple[str, ...]) -> list[float]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(
            f"{path}, line {line}: expected one JSON object on each line, got {text.strip()[:60]!r}"
        ) from None
    if not isinstance(row, dict):
        raise InputError(f"{path}, line {line}: expected a JSON object, got {text.strip()[:60]!r}")
    missing = [key for key in keys if key not in row]
    if missing:
        raise InputError(f"{path}, line {line}: expected keys {', '.join(keys)}; missing {', '.join(missing)}")
    values = [row[key] for key in keys]
    for key, value in zip(keys, values, strict=True):
        # The bound keeps out nan, infinity and integers that no float can hold.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
            raise InputError(f"{path}, line {line}: expected a finite number for {key}, got {str(value)[:40]!r}")
    return values


def _csv_format(path: Path, header: list[str]) -> CsvFormat:
    for form in CSV_FORMATS:
        if set(form.columns) <= set(header):
            return form
    came = ", ".join(header) if header else "an empty file"
    nearest = min(CSV_FORMATS, key=lambda form: len(set(form.columns) - set(header)))
    if set(nearest.columns) & set(header):
        missing = ", ".join(column for column in nearest.columns if column not in header)
        raise InputError(f"{path}, line 1: missing column {missing} of the {nearest.name} format; came: {came}")
    # The two lengths formats differ by an optional column only.
    known = "; ".join(", ".join(form.columns) for form in CSV_FORMATS[1:])
    raise InputError(f"{path}, line 1: expected a header with columns {known}; came: {came}")


def _csv_rows(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: expected csv, got something else ({error})") from None


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0.0
    except ValueError:
        return False


def _converted(
    path: Path, lines: list[int], column: str, cells: list[str], convert: Callable[[str], T], expected: str
) -> list[T]:
    values = []
    for line, cell in zip(lines, cells, strict=True):
        try:
            values.append(convert(cell))
        except ValueError:
            raise InputError(f"{path}, line {line}: expected {expected} for {column}, got {cell!r}") from None
    return values


def _numbers(path: Path, lines: list[int], column: str, cells: list[str]) -> FloatArray:
    return np.array(_converted(path, lines, column, cells, float, "a number"), dtype=np.float64)


def _tokens(path: Path, lines: list[int], column: str, values: FloatArray) -> Int64Array:
    bad = ~((values >= 1) & (values <= INT32_MAX) & (values == np.floor(values)))
    if bad.any():
        index = int(np.argmax(bad))
        raise InputError(
            f"{path}, line {lines[index]}: expected a whole number of tokens >= 1 for {column}, got {values[index]:g}"
        )
    return values.astype(np.int64)


def _nanoseconds(text: str) -> int:
    match = ISO_UTC.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    return int(np.datetime64(match[1], "ns").astype(np.int64))


def _seconds(path: Path, lines: list[int], form: CsvFormat, cells: list[str]) -> FloatArray:
    if not form.iso_times:
        return _numbers(path, lines, form.arrival, cells)
    stamps = _converted(path, lines, form.arrival, cells, _nanoseconds, "an ISO 8601 date and time in UTC")
    # Whole nanoseconds until the first stamp is subtracted: float seconds since 1970 resolve 0.2 us only.
    stamps_ns = np.array(stamps, dtype=np.int64)
    elapsed_s: FloatArray = (stamps_ns - stamps_ns[0]) / 1e9
    return elapsed_s


def _from_first(path: Path, lines: list[int], column: str, times: FloatArray) -> FloatArray:
    unsorted = np.zeros(times.shape[0], dtype=np.bool_)
    unsorted[1:] = times[1:] < times[:-1]
    bad = unsorted | ~np.isfinite(times) | (times < 0.0)
    if bad.any():
        index = int(np.argmax(bad))
        if unsorted[index]:
            expected = f"times in order (at least {times[index - 1]:.9g} s)"
        else:
            expected = "a finite time >= 0"
        raise InputError(f"{path}, line {lines[index]}: expected {expected} for {column}, got {times[index]:.9g} s")
    return times - times[0]
