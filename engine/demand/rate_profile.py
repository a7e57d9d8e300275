"""Arrival rates over a day: a csv file with the columns ``hour`` and ``rate`` (requests/s), each until the next row."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

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
    rows = [(line, *_row(f"{path}, line {line}", row, header)) for line, row in lines[1:]]
    if not rows:
        raise InputError(f"{path}: expected at least one row of data, got none")
    if rows[0][1] != 0.0:
        raise InputError(f"{path}, line {rows[0][0]}: expected a day that begins at hour 0, got {rows[0][1]:g}")
    for (_, before, _), (line, hour, _) in pairwise(rows):
        if not hour > before:
            raise InputError(f"{path}, line {line}: expected hours that rise, got {hour:g} after {before:g}")
    ends = [*(hour for _, hour, _ in rows[1:]), DAY_H]
    return tuple(Stretch(hour, end - hour, rate) for (_, hour, rate), end in zip(rows, ends, strict=True))


def _row(where: str, row: list[str], header: list[str]) -> tuple[float, float]:
    """Hour and rate of a row."""
    if len(row) != len(header):
        raise InputError(f"{where}: expected {len(header)} columns, got {len(row)}")
    hour, rate = (row[header.index(name)] for name in COLUMNS)
    return float(_HOUR.parse(hour, f"{where}: hour")), float(_RATE.parse(rate, f"{where}: rate"))
