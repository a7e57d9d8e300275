"""A trace file on its way to rows: the open file, what its beginning shows, the rows as they are written.

`TraceFormat` is what a format is: it recognises its files by their beginning and reads them. Those that are known are
listed in `engine.demand.trace_formats`.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TextIO

from engine.demand.trace_options import TraceOptions

WHAT = "a trace"
"""What a trace is called in messages."""


@dataclass(frozen=True)
class Start:
    """The beginning of a file, from which its format is found."""

    text: str
    """The first 65536 characters."""

    @cached_property
    def first(self) -> str:
        """The first character that is no white space."""
        return self.line[:1]

    @cached_property
    def line(self) -> str:
        """The first line that is not empty, as far as it is there."""
        return self.text.lstrip().partition("\n")[0]

    @cached_property
    def header(self) -> list[str]:
        """The names in that line if it is a line of csv."""
        try:
            rows = csv.reader(io.StringIO(self.text, newline=""))
            return names_of(next((row for row in rows if row and row != [""]), []))
        except csv.Error:
            return []


def names_of(row: list[str]) -> list[str]:
    """The names in the header of a csv file."""
    return [name.strip().lstrip("\ufeff") for name in row]


@dataclass(frozen=True)
class TraceFile:
    """A file to be read as a trace."""

    path: Path
    """Its name, for messages, and for formats that are read as a whole."""
    file: TextIO
    """The open file, at its beginning."""
    start: Start
    """What it begins with."""
    options: TraceOptions
    """How its rows are to be taken."""
    limit: int | None = None
    """Rows with times after which reading may stop; None: all."""


class TraceFormat(Protocol):
    """A format of trace files."""

    @property
    def name(self) -> str:
        """Name of the format, in source lines and lists."""

    @property
    def about(self) -> str:
        """What is in such a file, in a line."""

    @property
    def is_text(self) -> bool:
        """Whether requests are text, whose tokens are to be counted."""

    def recognises(self, start: Start) -> bool:
        """Whether a file that begins like this is to be read in this format."""

    def read(self, file: TraceFile) -> RawTrace:
        """The rows of a file.

        Raises:
            InputError: it is no such file; names file and line.
        """


@dataclass(eq=False)
class RawTrace:
    """The rows of a trace file as they are written."""

    path: Any
    """The file, for messages."""
    name: str
    """Name of the format."""
    columns: tuple[str, str, str]
    """Names of the columns of times (empty: none), prompts and outputs, for messages."""
    place: str = "line"
    """What a row's number counts: line, request."""
    numbers: list[int] = field(default_factory=list)
    """Number of each row."""
    times: list[Any] = field(default_factory=list)
    """Times as text or numbers; empty if the file has none."""
    prompts: list[Any] = field(default_factory=list)
    """Prompt lengths as text or numbers, None or empty where there is none."""
    outputs: list[Any] = field(default_factory=list)
    """Output lengths in the same way."""
    unit: str | None = None
    """Unit of the times: s, ms, us, ns, iso; None: not known."""
    notes: list[str] = field(default_factory=list)
    """What else the source line should say."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that the format itself leaves out, and rows that were cut short, by reason."""
    in_order: bool = True
    """Whether the rows of the file are meant to be in order of time."""

    @property
    def has_times(self) -> bool:
        """Whether the file says when its requests arrived."""
        return bool(self.columns[0])

    def add(self, number: int, time: object, prompt: object, output: object) -> None:
        """Add one row; None for a time in a file without times."""
        self.numbers.append(number)
        if self.has_times:
            self.times.append(time)
        self.prompts.append(prompt)
        self.outputs.append(output)

    def where(self, index: int) -> str:
        """File and row, for messages."""
        return f"{self.path}, {self.place} {self.numbers[index]}"
