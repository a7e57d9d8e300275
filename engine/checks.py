"""Numbers that callers give: one line where they are of the wrong kind or out of range."""

import math
from typing import Any

import numpy as np

from engine.errors import InputError

LARGEST = 2**53
"""Largest whole number that every field takes: beyond it a float64 no longer tells neighbours apart."""


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number by type: Python's or numpy's, but no flag."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Whether a value is a finite number by type and value; flags are none."""
    if is_whole(value):
        return abs(int(value)) <= LARGEST
    return isinstance(value, float | np.floating) and math.isfinite(value)


def show(value: Any, most: int = 80) -> str:
    """A value for an error message: one line, not longer than `most` characters, whatever its repr does."""
    try:
        text = repr(value)
    except Exception as error:  # a foreign object's repr may raise anything; so may that of an int of 5000 digits
        text = f"a value of type {type(value).__name__} ({type(error).__name__} in its repr)"
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def check_whole(where: str, value: Any, low: int, high: int = LARGEST) -> int:
    """The value as an int.

    Raises:
        InputError: it is no whole number, or outside low..high.
    """
    if not is_whole(value) or not low <= value <= high:
        upper = f"{low}..{high}" if high != LARGEST else f">= {low}"
        raise InputError(f"{where}: expected a whole number {upper}, got {show(value)}")
    return int(value)


def check_real(
    where: str, value: Any, low: float = 0.0, *, above: bool = False, unit: str = "a finite number"
) -> float:
    """The value as a float.

    Args:
        where: what it is.
        value: what came.
        low: the least value.
        above: the value must lie above `low`, not on it.
        unit: what is expected, in words.

    Raises:
        InputError: it is no finite number, or too small.
    """
    if not is_real(value) or not (value > low if above else value >= low):
        raise InputError(f"{where}: expected {unit} {'>' if above else '>='} {low:g}, got {show(value)}")
    return float(value)


def check_flag(where: str, value: Any) -> bool:
    """The value as a bool.

    Raises:
        InputError: it is anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{where}: expected true or false, got {show(value)}")
    return bool(value)
