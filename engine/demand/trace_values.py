"""Times and tokens in the cells of trace files as numbers: no digit of a time is lost, no unit guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.demand.raw_trace import RawTrace
from engine.demand.requests import INT32_MAX
from engine.demand.trace_options import PER_SECOND, TimeUnit
from engine.errors import InputError
from engine.files.reading import kind_of
from engine.ranges import parse_number

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_EXACT_BELOW = 1e7
"""Times as floats are exact enough below it; above, digits are subtracted as decimals before they become floats."""
ISO_UTC = re.compile(r"((?:19|20)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?)(?:Z|\+00:00)?", re.ASCII)


def tokens_of(raw: RawTrace, column: str, cells: Sequence[Any]) -> Int64Array:
    """Whole tokens, 0 where a row has none.

    Raises:
        InputError: what is no number of tokens at all.
    """
    quick = _plain_floats(cells)
    if quick is not None and bool(((quick >= 0) & (quick <= INT32_MAX) & (quick == np.floor(quick))).all()):
        return quick.astype(np.int64)
    found = np.zeros(len(cells), np.int64)
    for index, cell in enumerate(cells):
        value = _number(raw, index, cell, column, int | float)
        if value is None:
            continue
        if not 0 <= value <= INT32_MAX or value != int(value):
            shown = f"{float(value):g}" if abs(value) < 10**300 or value != value else kind_of(cell)
            raise InputError(f"{raw.where(index)}: expected a whole number of tokens >= 1 for {column}, got {shown}")
        found[index] = int(value)
    return found


def _number(raw: RawTrace, index: int, cell: Any, column: str, kinds: Any) -> Any:
    """The number in a cell, None if there is nothing.

    Raises:
        InputError: it is something else.
    """
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    value = parse_number(cell) if isinstance(cell, str) else cell
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise InputError(f"{raw.where(index)}: expected a number for {column}, got {kind_of(cell)}")
    return value


def _plain_floats(cells: Sequence[Any]) -> FloatArray | None:
    """All cells as floats at once, None if one is none."""
    if any(isinstance(cell, bool) or (isinstance(cell, str) and not cell.isascii()) for cell in cells):
        return None
    try:
        return np.array(cells, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None


def times_of(raw: RawTrace, time_unit: TimeUnit | None) -> FloatArray:
    """Seconds from the first row with a time, float64[n]; nan where a row has none.

    Raises:
        InputError: a time that is none, or a unit that nobody said.
    """
    if raw.unit == "iso":
        if time_unit is not None:
            column = raw.columns[0]
            raise InputError(f"time_unit: expected none for {raw.path}, whose {column} are dates, got {time_unit}")
        return _from_first([_nanoseconds(raw, index) for index in range(len(raw.times))], 10**9)
    unit = _unit_of(raw, time_unit)
    quick = _plain_floats(raw.times)
    if quick is not None and bool(((quick >= 0.0) & (quick < _EXACT_BELOW)).all()):
        return np.asarray((quick - quick[0]) / PER_SECOND[unit], np.float64)
    return _from_first([_time(raw, index) for index in range(len(raw.times))], PER_SECOND[unit])


def _unit_of(raw: RawTrace, time_unit: TimeUnit | None) -> str:
    """The unit of the times that are no dates; the source line gets to know it."""
    unit, column = time_unit or raw.unit, raw.columns[0]
    if unit is None:
        raise InputError(
            f"{raw.path}: expected the unit of {column} ({', '.join(PER_SECOND)}: time_unit, --time-unit), since the "
            f"file has no known format ({'; '.join(raw.notes) or raw.name})"
        )
    raw.notes.append(f"{column} in {unit}" + ("" if time_unit else " as the format has it"))
    return unit


def _time(raw: RawTrace, index: int) -> int | float | Decimal | None:
    """One time as a number without rounding, None if there is none."""
    cell = raw.times[index]
    value = _number(raw, index, cell, raw.columns[0], int | float | Decimal)
    if value is None:
        return None
    if not 0 <= value < 10**30:  # keeps out nan, infinity and integers that no float can hold
        shown = f"{value:.9g}" if isinstance(value, float) else kind_of(value)
        raise InputError(f"{raw.where(index)}: expected a finite time >= 0 for {raw.columns[0]}, got {shown}")
    if isinstance(value, float) and value >= _EXACT_BELOW:
        try:
            return Decimal(cell.strip().replace("_", "") if isinstance(cell, str) else repr(cell))
        except InvalidOperation:
            return value
    return value


def _nanoseconds(raw: RawTrace, index: int) -> int | None:
    text = str(raw.times[index] or "").strip()
    if not text:
        return None
    match = ISO_UTC.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        return int(np.datetime64(match[1], "ns").astype(np.int64))
    except ValueError:
        raise InputError(
            f"{raw.where(index)}: expected an ISO 8601 date and time in UTC for {raw.columns[0]}, got {kind_of(text)}"
        ) from None


def _from_first(values: list[Any], per_second: int) -> FloatArray:
    """Seconds after the first value; the first is subtracted while the digits are exact."""
    present = [value for value in values if value is not None]
    if any(isinstance(value, float | Decimal) for value in present):
        present = [Decimal(repr(value) if isinstance(value, float) else value) for value in present]
    first = present[0] if present else 0
    found = np.full(len(values), np.nan)
    found[[value is not None for value in values]] = [float(value - first) for value in present]
    return found / per_second
