"""Numbers of people with a kind and a range: `Bounds`, the ranges that come again and again, and types that carry them.

A range is said once, where the number is declared: ``rate: Annotated[float, number(0.0, 1e9, above=True)]`` as a field
(`engine.fields.checked` looks at it), or as a constant for numbers in texts. Every refusal is one line with what was
expected, what came and where.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import numpy as np

from engine.errors import InputError
from engine.files.reading import kind_of

MOST_SECONDS = 1e9
"""Longest time that any option or field may say (s): 31 years."""
MOST_TOKENS = 2**31 - 1
"""Most tokens, blocks or requests that any field may say: the engine counts with 32 bits."""
MOST = 1e12
"""Largest magnitude of numbers without a tighter range; beyond it sums of seconds and tokens mean nothing."""
LARGEST_SEED = 2**128 - 1
"""Largest seed."""


@dataclass(frozen=True)
class Bounds:
    """A kind of number and the range that it must be in."""

    low: float = -MOST
    """Least value."""
    high: float = MOST
    """Largest value."""
    whole: bool = False
    """Whether only whole numbers are meant."""
    above: bool = False
    """Whether `low` itself is excluded."""
    below: bool = False
    """Whether `high` itself is excluded."""
    noun: str = ""
    """What the number is, for messages ("seconds"); empty: a number, a whole number."""

    @property
    def text(self) -> str:
        """The kind and the range in words."""
        least, most = self._least, f"{'<' if self.below else '<='} {_plain(self.high)}"
        return f"{self._noun} {least} and {most}" if least else f"{self._noun} {most}"

    @property
    def _noun(self) -> str:
        return self.noun or ("a whole number" if self.whole else "a number")

    @property
    def _least(self) -> str:
        """The lower end in words, empty where there is none that matters."""
        return f"{'>' if self.above else '>='} {_plain(self.low)}" if self.low > -MOST_TOKENS else ""

    def _refuse(self, value: object, where: str, too_large: bool = False, broken: bool = False) -> NoReturn:
        """The upper end is named only to a value beyond it; to a broken number, that a whole one is meant."""
        noun = f"a whole number of {self._noun}" if broken and self.noun else self._noun
        expected = self.text if too_large else f"{noun} {self._least}".strip()
        raise InputError(f"{where}: expected {expected}, got {kind_of(value)}")

    def check(self, value: object, where: str) -> Any:
        """The value as a plain number of Python, if it is one in the range; ``-0.0`` becomes 0.0.

        Raises:
            InputError: it is not; `where` begins the line.
        """
        number = _as_number(value)
        if number is None:
            self._refuse(value, where)
        if self.whole and number != math.floor(number):
            self._refuse(value, where, broken=True)
        if number > self.high or (self.below and number == self.high):
            self._refuse(value, where, too_large=True)
        if number < self.low or (self.above and number == self.low):
            self._refuse(value, where)
        return int(number) if self.whole else number + 0

    def parse(self, text: str, where: str) -> Any:
        """The number that a text is, as in a spec or an option: ``3``, ``1_000``, ``2e-4``.

        Raises:
            InputError: it is not one in the range.
        """
        number = parse_number(text)
        if number is None or not math.isfinite(number):
            self._refuse(text, where)
        value = self.check(number, where)
        return value if self.whole else float(value)


def _plain(value: float) -> str:
    """A bound as people write it."""
    return f"{int(value):d}" if value == math.floor(value) and abs(value) < 1e15 else f"{value:g}"


def _as_number(value: object) -> int | float | None:
    """A finite plain number of Python, or None; a truth value is not a number."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    number: int | float = int(value) if isinstance(value, int | np.integer) else float(value)
    if isinstance(number, float):
        return number + 0.0 if math.isfinite(number) else None
    return number if abs(number) < 10**300 else None


def parse_number(text: str) -> int | float | None:
    """A number written in ASCII, None for anything else; a whole one stays exact whatever its size."""
    text = text.strip()
    if not text.isascii() or len(text) > 300:
        return None
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return None


def number(low: float = -MOST, high: float = MOST, **options: Any) -> Bounds:
    """Any number from `low` to `high`."""
    return Bounds(low, high, **options)


def whole(low: float = -MOST_TOKENS, high: float = MOST_TOKENS, **options: Any) -> Bounds:
    """A whole number from `low` to `high`."""
    return Bounds(low, high, whole=True, **options)


NOT_NEGATIVE = number(0.0)
SHARE = number(0.0, 1.0)
RATE = number(0.0, 1e9, above=True)
COUNT = whole(1)
SECONDS = number(0.0, MOST_SECONDS, noun="seconds")
SEED = whole(0, LARGEST_SEED)
"""The ranges that come again and again: numbers > 0 and >= 0, shares, requests/s, counts, seconds, seeds."""
NotNegative = Annotated[float, NOT_NEGATIVE]
Share = Annotated[float, SHARE]
Rate = Annotated[float, RATE]
Count = Annotated[int, COUNT]
Seconds = Annotated[float, SECONDS]
Seed = Annotated[int, SEED]
"""The same as types of fields, which `checked` knows."""


@dataclass(frozen=True)
class Readable:
    """What a text must be besides a text: readable, as ``Annotated[str, Readable(parse_think)]``."""

    read: Callable[[str, str], Any]
    """Reads a text; gets it and the place for messages, raises `InputError`."""

    def check(self, value: str, where: str) -> str:
        """The text itself.

        Raises:
            InputError: it cannot be read.
        """
        self.read(value, where)
        return value
