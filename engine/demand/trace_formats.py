"""Parsers of trace files: each turns a public format into the same raw rows and knows the line of every one.

Formats: `num_prefill_tokens,num_decode_tokens` with and without `arrived_at` (Vidur, Sarathi-Serve, SLAI);
Azure LLM inference traces; BurstGPT; Mooncake jsonl. ShareGPT conversations are in `engine.demand.sharegpt`, results of
`vllm bench serve` in `engine.demand.vllm_results`; what of the rows can be served, `engine.demand.trace_rows` says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

from engine.demand.trace_rows import RawTrace, TraceOptions
from engine.errors import InputError
from engine.fields import parse_number
from engine.files.lines import csv_rows, lines_of
from engine.files.reading import parse_json

WHAT = "a trace"
"""What a trace is called in messages."""
MOONCAKE_KEYS = ("timestamp", "input_length", "output_length")
"""Keys that every row of a Mooncake trace has; their times are milliseconds."""
HASHES = "hash_ids"
"""Key of Mooncake's prefix hashes, which it may have besides."""
_EPOCH_FLOAT = 1e7


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
    time_unit: str = "s"
    """Unit of arrival times, ``iso``: dates in UTC."""
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
    CsvFormat("Azure csv", "ContextTokens", "GeneratedTokens", "TIMESTAMP", time_unit="iso"),
    CsvFormat("BurstGPT csv", "Request tokens", "Response tokens", "Timestamp", zero_output_failed=True),
)


def read_csv(path: Path, file: TextIO, options: TraceOptions, limit: int | None = None) -> RawTrace:
    """Read a csv trace whose header names one of `CSV_FORMATS`; further columns are ignored.

    Args:
        path: name of the file, for messages.
        file: the open file, at its beginning.
        options: whether rows that are cut short may be left out.
        limit: stop after this many rows of a timed format; a file of lengths is always read whole.

    Raises:
        InputError: unknown columns, or a row with another number of columns than the header.
    """
    rows = csv_rows(file, path, WHAT)
    header = [name.strip().lstrip("\ufeff") for name in next(rows, (1, []))[1]]
    form = _csv_format(path, header)
    if twice := [column for column in form.columns if header.count(column) > 1]:
        raise InputError(f"{path}, line 1: expected each column once, got {twice[0]} twice")
    *timed, prompt, output = (header.index(column) for column in form.columns)
    raw = RawTrace(path, form.name, (form.arrival, form.prompt, form.output), unit=form.time_unit)
    if not form.arrival and len(header) > len(form.columns):
        others = [name for name in header if name not in form.columns]
        raw.notes.append(f"without {', '.join(others)[:200]}")
    limit = limit if form.arrival else None
    for line, row in rows:
        if len(row) != len(header):
            if options.unservable == "refuse":
                raise InputError(
                    f"{path}, line {line}: expected {len(header)} columns, got {len(row)} (truncated row?): "
                    "unservable='skip' (--unservable skip) leaves such rows out and counts them"
                )
            raw.left_out["with another number of columns"] += 1
        elif form.zero_output_failed and parse_number(row[output]) == 0:
            raw.left_out["failed requests"] += 1
        else:
            raw.add(line, row[timed[0]] if timed else None, row[prompt], row[output])
        if len(raw.numbers) == limit:
            break
    return raw


def read_mooncake(path: Path, file: TextIO, limit: int | None = None) -> RawTrace:
    """Read a Mooncake trace: lines of JSON with `timestamp` (ms), `input_length`, `output_length` (tokens).

    Mooncake's files have these keys and perhaps `hash_ids`, which are ignored. A file with further keys is not one of
    its, and the unit of its times is not known.

    Args:
        path: name of the file, for messages.
        file: the open file, at its beginning.
        limit: stop after this many rows.

    Raises:
        InputError: a line that is not such an object (names file and line).
    """
    raw = RawTrace(path, "Mooncake jsonl", MOONCAKE_KEYS, unit="ms")
    foreign: dict[str, None] = {}
    hashes = False
    for line, text in lines_of(file, path, WHAT):
        if text.isspace():
            continue
        row = mooncake_row(path, line, text)
        foreign |= dict.fromkeys(key for key in row if key not in MOONCAKE_KEYS and key != HASHES)
        hashes = hashes or bool(row.get(HASHES))
        raw.add(line, _exact(row["timestamp"], text), row["input_length"], row["output_length"])
        if len(raw.numbers) == limit:
            break
    if hashes:
        raw.notes.append(f"prefix hashes ({HASHES}) ignored")
    if foreign:
        raw.name, raw.unit = "jsonl", None
        raw.notes.append(f"keys beyond Mooncake's: {', '.join(list(foreign)[:5])[:200]}")
    return raw


def mooncake_row(path: Path, line: int, text: str) -> dict[str, Any]:
    """One line as an object with Mooncake's keys, whose values are numbers or nothing."""
    where = f"{path}, line {line}"
    row = parse_json(text, where)
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, got {text.strip()[:60]!r}")
    if missing := [key for key in MOONCAKE_KEYS if key not in row]:
        raise InputError(f"{where}: expected keys {', '.join(MOONCAKE_KEYS)}; missing {', '.join(missing)}")
    for key in MOONCAKE_KEYS:
        value = row[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InputError(f"{where}: expected a finite number for {key}, got {str(value)[:40]!r}")
    return row


def _exact(stamp: Any, text: str) -> Any:
    """A time with the digits that its line has: a float has lost some of those of seconds since 1970."""
    if isinstance(stamp, float) and stamp >= _EPOCH_FLOAT:
        found = re.search(r'"timestamp"\s*:\s*([0-9.eE+-]+)', text)
        if found and float(found[1]) == stamp:
            return Decimal(found[1])
    return stamp


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
