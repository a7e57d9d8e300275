"""Formats of trace files: every one is an entry of `FORMATS`, which says how it is recognised and how it is read.

Tables of lengths, as csv or as lines of JSON, are entries that name their columns; a format of another shape is a class
of its own: conversations (`engine.demand.sharegpt`), results of `vllm bench serve` (`engine.demand.vllm_results`),
histograms (`engine.demand.prometheus`). What of the rows can be served, `engine.demand.trace_rows` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from engine.demand.prometheus import PrometheusText
from engine.demand.raw_trace import WHAT, RawTrace, Start, TraceFile, TraceFormat, names_of
from engine.demand.server_run import LENGTHS as LOGGED_LENGTHS
from engine.demand.sharegpt import Conversations
from engine.demand.vllm_results import VllmResults
from engine.errors import InputError
from engine.files.lines import csv_rows, lines_of
from engine.files.reading import parse_json
from engine.ranges import parse_number

_EPOCH_FLOAT = 1e7
_SHOWN = 5
"""Unknown keys that a note names."""


@dataclass(frozen=True)
class TableFormat:
    """A format whose rows have columns of lengths and perhaps of times."""

    name: str
    """Name of the format in source lines."""
    about: str
    """What is in such a file, for lists of formats."""
    prompt: str
    """Column of prompt lengths (tokens)."""
    output: str
    """Column of output lengths (tokens)."""
    arrival: str = ""
    """Column of arrival times; empty for lengths only, which are read whole whatever the limit."""
    time_unit: str = "s"
    """Unit of arrival times, ``iso``: dates in UTC."""
    in_order: bool = True
    """Whether rows are meant to be in order of time."""

    @property
    def is_text(self) -> bool:
        """Lengths are in tokens."""
        return False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the format needs."""
        return (*((self.arrival,) if self.arrival else ()), self.prompt, self.output)

    def raw(self, path: Path) -> RawTrace:
        """No rows yet."""
        columns = (self.arrival, self.prompt, self.output)
        return RawTrace(path, self.name, columns, unit=self.time_unit, in_order=self.in_order)

    def limit(self, file: TraceFile) -> int | None:
        """Rows after which reading may stop."""
        return file.limit if self.arrival and self.in_order else None


@dataclass(frozen=True)
class CsvFormat(TableFormat):
    """A csv format: its columns are in the header, in any order and among others, which are ignored."""

    zero_output_failed: bool = False
    """Whether an output of 0 tokens marks a failed request, to be left out."""

    def missing(self, start: Start) -> int:
        """Columns that the beginning of a file does not have."""
        return len(set(self.columns) - set(start.header))

    def recognises(self, start: Start) -> bool:
        """Every column is in the header."""
        return start.first not in ("{", "[") and not self.missing(start)

    def read(self, file: TraceFile) -> RawTrace:
        """Read the rows; failed requests are left out and counted.

        Raises:
            InputError: unknown columns, or a row with another number of columns than the header.
        """
        rows = csv_rows(file.file, file.path, WHAT)
        header = names_of(next(rows, (1, []))[1])
        self._check(file.path, header)
        *timed, prompt, output = (header.index(column) for column in self.columns)
        raw, limit = self.raw(file.path), self.limit(file)
        raw.notes += self._further(header)
        for line, row in rows:
            if reason := self._fault(file, line, row, len(header)):
                raw.left_out[reason] += 1
            elif self.zero_output_failed and parse_number(row[output]) == 0:
                raw.left_out["failed requests"] += 1
            else:
                raw.add(line, row[timed[0]] if timed else None, row[prompt], row[output])
            if len(raw.numbers) == limit:
                break
        return raw

    def _further(self, header: list[str]) -> list[str]:
        """The note on columns of lengths without times that are left aside, if there are any."""
        others = [] if self.arrival else [name for name in header if name not in self.columns]
        return [f"without {', '.join(others)[:200]}"] if others else []

    def _fault(self, file: TraceFile, line: int, row: list[str], width: int) -> str:
        """Why a row that is not as wide as the header is left out, unless it is refused; "" for others."""
        if len(row) == width:
            return ""
        if file.options.unservable == "refuse":
            raise InputError(
                f"{file.path}, line {line}: expected {width} columns, got {len(row)} (truncated row?): "
                "unservable='skip' (--unservable skip) leaves such rows out and counts them"
            )
        return "with another number of columns"

    def _check(self, path: Path, header: list[str]) -> None:
        """Find what of the columns the header lacks or has twice."""
        where, missing = f"{path}, line 1", [column for column in self.columns if column not in header]
        if twice := [column for column in self.columns if header.count(column) > 1]:
            raise InputError(f"{where}: expected each column once, got {twice[0]} twice")
        if not missing:
            return
        came = ", ".join(header) if header else "an empty file"
        if len(missing) < len(self.columns):
            raise InputError(f"{where}: missing column {', '.join(missing)} of the {self.name} format; came: {came}")
        raise InputError(f"{where}: expected a header with columns {_known_columns()}; came: {came}")


@dataclass(frozen=True)
class JsonlFormat(TableFormat):
    """A format with one JSON object a line, whose keys are the columns; their values are numbers."""

    ignored: tuple[tuple[str, str], ...] = ()
    """Further keys that such files have, and what they are called in the note that they are ignored."""
    closed: bool = True
    """Whether a file with keys beyond these is none of the format's, so that the unit of its times is not known."""

    def missing(self, start: Start) -> int:
        """Columns that the beginning of a file does not have."""
        return sum(f'"{column}"' not in start.line for column in self.columns)

    def recognises(self, start: Start) -> bool:
        """Every column is a key in the first line."""
        return start.first == "{" and not self.missing(start)

    def read(self, file: TraceFile) -> RawTrace:
        """Read the lines; what is not read because of a limit says nothing about the format either.

        Raises:
            InputError: a line that is not such an object (names file and line).
        """
        raw, limit = self.raw(file.path), self.limit(file)
        seen: dict[str, bool] = {}
        for line, text, row in self._rows(file):
            seen |= {key: bool(value) or seen.get(key, False) for key, value in row.items() if key not in self.columns}
            time = exact(row[self.arrival], self.arrival, text) if self.arrival else None
            raw.add(line, time, row[self.prompt], row[self.output])
            if len(raw.numbers) == limit:
                break
        self._note(raw, seen)
        return raw

    def _note(self, raw: RawTrace, seen: dict[str, bool]) -> None:
        """What keys besides the columns mean, given whether any row has something under them."""
        ignored = dict(self.ignored)
        raw.notes += [f"{what} ({key}) ignored" for key, what in self.ignored if seen.get(key)]
        further = [key for key in seen if key not in ignored]
        if further and self.closed:
            owner = self.name.removesuffix(" jsonl")
            raw.name, raw.unit = "jsonl", None
            raw.notes.append(f"keys beyond {owner}'s: {', '.join(further[:_SHOWN])[:200]}")

    def _rows(self, file: TraceFile) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Number, text and object of every line that is not empty."""
        for line, text in lines_of(file.file, file.path, WHAT):
            if not text.isspace():
                yield line, text, self._row(f"{file.path}, line {line}", text)

    def _row(self, where: str, text: str) -> dict[str, Any]:
        """One line as an object with the format's keys, whose values are numbers or nothing."""
        row = parse_json(text, where)
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected a JSON object, got {text.strip()[:60]!r}")
        if missing := [key for key in self.columns if key not in row]:
            raise InputError(f"{where}: expected keys {', '.join(self.columns)}; missing {', '.join(missing)}")
        for key in self.columns:
            value = row[key]
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise InputError(f"{where}: expected a finite number for {key}, got {str(value)[:40]!r}")
        return row


def exact(stamp: object, key: str, text: str) -> Any:
    """A time with the digits that its line has: a float has lost some of those of seconds since 1970."""
    if isinstance(stamp, float) and stamp >= _EPOCH_FLOAT:
        found = re.search(rf'"{re.escape(key)}"\s*:\s*([0-9.eE+-]+)', text)
        if found and float(found[1]) == stamp:
            return Decimal(found[1])
    return stamp


_TIMES, _PROMPTS, _OUTPUTS = "arrived_at", "num_prefill_tokens", "num_decode_tokens"
MOONCAKE = JsonlFormat(
    "Mooncake jsonl",
    "timestamp (ms), input_length, output_length",
    arrival="timestamp",
    prompt="input_length",
    output="output_length",
    time_unit="ms",
    ignored=(("hash_ids", "prefix hashes"),),
)
"""Traces of Mooncake (Kimi), and what `engine.demand.traces.write_mooncake` writes."""
FORMATS: tuple[TraceFormat, ...] = (
    PrometheusText(),
    VllmResults(),
    Conversations(),
    MOONCAKE,
    JsonlFormat(
        "vLLM request log",
        f"arrival_time (s), {', '.join(LOGGED_LENGTHS)} of each request (`engine.demand.server_run`)",
        arrival="arrival_time",
        prompt=LOGGED_LENGTHS[0],
        output=LOGGED_LENGTHS[1],
        in_order=False,
        closed=False,
    ),
    CsvFormat("timed lengths csv", f"{_TIMES},{_PROMPTS},{_OUTPUTS} (s)", _PROMPTS, _OUTPUTS, _TIMES),
    CsvFormat("lengths csv", f"{_PROMPTS},{_OUTPUTS}; arrivals are drawn (--rate)", _PROMPTS, _OUTPUTS),
    CsvFormat(
        "Azure csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        arrival="TIMESTAMP",
        prompt="ContextTokens",
        output="GeneratedTokens",
        time_unit="iso",
    ),
    CsvFormat(
        "BurstGPT csv",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        arrival="Timestamp",
        prompt="Request tokens",
        output="Response tokens",
        zero_output_failed=True,
    ),
)
"""Every known format; of several that recognise a file the first one counts."""


def format_of(start: Start) -> TraceFormat:
    """The format of a file that begins like this; where none recognises it, the nearest, whose `read` says why not."""
    found = next((form for form in FORMATS if form.recognises(start)), None)
    if found is not None:
        return found
    kind = JsonlFormat if start.first == "{" else CsvFormat
    return min((form for form in FORMATS if isinstance(form, kind)), key=lambda form: form.missing(start))


def _known_columns() -> str:
    """The columns of every csv format; those that only add an optional one to another's are left out."""
    known = [form.columns for form in FORMATS if isinstance(form, CsvFormat)]
    return "; ".join(", ".join(columns) for columns in known if not any(set(other) < set(columns) for other in known))
