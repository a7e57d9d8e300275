"""Arrival rates over a day: a csv file with the columns ``hour`` and ``rate`` (requests/s), each until the next row."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from engine.demand.raw_trace import names_of
from engine.errors import InputError
from engine.files.lines import read_csv
from engine.ranges import number

WHAT = "a profile of rates"
COLUMNS = ("hour", "rate")
DAY_H = 24.0
_HOUR = number(0.0, DAY_H, below=True, noun="hours")
_RATE = number(0.0, 1e9, noun="requests/s")


@dataclass(frozen=True)
class Stretch:
    """A part of the day with one rate."""

    start_h: float
    """When it begins (hours)."""
    hours: float
    """How long it lasts."""
    rate: float
    """Requests/s."""


def read_rate_profile(path: str | Path) -> tuple[Stretch, ...]:
    """Read the rates of a day.

    The first row begins at hour 0, the last lasts until the day ends.

    Raises:
        InputError: another header, no row, or hours that do not rise from 0 to below 24; names file and line.
    """
    path = Path(path)
    lines = read_csv(path, WHAT)
    header = names_of(lines[0][1]) if lines else []
    if missing := [name for name in COLUMNS if name not in header]:
        came = ", ".join(header) or "an empty file"
        raise InputError(f"{path}, line 1: expected the columns hour, rate; missing {', '.join(missing)}; came: {came}")
    rows = [_Row(line, *_numbers(f"{path}, line {line}", row, header)) for line, row in lines[1:]]
    _check_hours(path, rows)
    ends = [*(row.hour for row in rows[1:]), DAY_H]
    return tuple(Stretch(row.hour, end - row.hour, row.rate) for row, end in zip(rows, ends, strict=True))


class _Row(NamedTuple):
    """A row of the file."""

    line: int
    hour: float
    rate: float


def _numbers(where: str, row: list[str], header: list[str]) -> tuple[float, float]:
    """Hour and rate of a row."""
    if len(row) != len(header):
        raise InputError(f"{where}: expected {len(header)} columns, got {len(row)}")
    hour, rate = (row[header.index(name)] for name in COLUMNS)
    return float(_HOUR.parse(hour, f"{where}: hour")), float(_RATE.parse(rate, f"{where}: rate"))


def _check_hours(path: Path, rows: list[_Row]) -> None:
    """Find a day that does not begin at 0, or hours that do not rise."""
    if not rows:
        raise InputError(f"{path}: expected at least one row of data, got none")
    if rows[0].hour != 0.0:
        raise InputError(f"{path}, line {rows[0].line}: expected a day that begins at hour 0, got {rows[0].hour:g}")
    for before, row in pairwise(rows):
        if not row.hour > before.hour:
            where = f"{path}, line {row.line}"
            raise InputError(f"{where}: expected hours that rise, got {row.hour:g} after {before.hour:g}")
