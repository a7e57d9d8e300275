"""Values of people with a type and a range: fields of records, numbers in specs and options, mappings to records.

`Bounds` is the one meaning of "a number of this kind in this range", `checked` applies it to the fields of a frozen
dataclass at construction, and `from_mapping` makes such a record of what a file holds. Every refusal is one line with
what was expected, what came and where (file and dotted field).
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from engine.errors import InputError
from engine.files.reading import kind_of

T = TypeVar("T")

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

    def _refuse(self, value: Any, where: str, too_large: bool = False) -> NoReturn:
        """The upper end is named only to a value beyond it."""
        expected = self.text if too_large else f"{self._noun} {self._least}".strip()
        raise InputError(f"{where}: expected {expected}, got {kind_of(value)}")

    def check(self, value: Any, where: str) -> Any:
        """The value as a plain number of Python, if it is one in the range; ``-0.0`` becomes 0.0.

        Raises:
            InputError: it is not; `where` begins the line.
        """
        number = _as_number(value)
        if number is None or (self.whole and number != math.floor(number)):
            self._refuse(value, where)
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


def _as_number(value: Any) -> int | float | None:
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


def checked(record: Any, where: str, bounds: Mapping[str, Bounds] | None = None, untyped: Collection[str] = ()) -> None:
    """Check every field of a frozen dataclass against its annotation and its range, from its ``__post_init__``.

    Numbers of numpy become those of Python, lists become tuples where tuples are declared.

    Args:
        record: the instance; its fields are set anew where their value is converted.
        where: what names the record in messages, a dot between it and the field ("env" for env.rates); nothing is put
            after a space ("policy 'slai': ").
        bounds: ranges of the fields that are numbers, or tuples of numbers; any finite number without one.
        untyped: fields that are left alone.

    Raises:
        InputError: a field does not fit; names it.
    """
    hints = _hints(type(record))
    place = where if not where or where[-1] in " ." else f"{where}."
    for name in hints:
        value, limits = getattr(record, name), bounds.get(name) if bounds else None
        if _is_plain(value, hints[name], limits) or name in untyped:
            continue
        new = convert(value, hints[name], place + name, limits)
        if new is not value:
            object.__setattr__(record, name, new)


def _is_plain(value: Any, kind: Any, limits: Bounds | None) -> bool:
    """Whether a value is seen at a glance to be what it should: most are, and records are made for every episode."""
    if type(value) is not kind:
        return False
    if kind is float or kind is int:
        return limits is not None and limits.low < value < limits.high
    return kind is bool or (kind is str and value.isascii() and value.isprintable())


_HINTS: dict[Any, dict[str, Any]] = {}


def _hints(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, resolved once; those of a user's class that cannot be say nothing."""
    if cls not in _HINTS:
        try:
            found = get_type_hints(cls)
        except (NameError, TypeError, AttributeError):
            found = {}
        _HINTS[cls] = {field.name: found.get(field.name, Any) for field in dataclasses.fields(cls)}
    return _HINTS[cls]


def from_mapping(cls: type[T], data: Any, where: str) -> T:
    """A record of a dataclass from a mapping: the keys are its fields, what is absent keeps its default.

    Args:
        cls: a dataclass; fields may be dataclasses themselves, tuples, literals, optional.
        data: the mapping, as a JSON or YAML file gives it.
        where: file and dotted place, for messages.

    Raises:
        InputError: not a mapping, an unknown or a missing key, a value of another type or out of range.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: expected a mapping, got {kind_of(data)}")
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise InputError(f"{where}: unknown key {kind_of(key)}, known: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in data and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: missing key {name!r}")
    hints = _hints(cls)
    values = {}
    for key, value in data.items():
        # A field that people may write in more than one form says itself how it is read.
        read = fields[key].metadata.get("read")
        values[key] = read(value, f"{where}.{key}") if read else convert(value, hints[key], f"{where}.{key}")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(_placed(str(error), where)) from None


def _placed(message: str, where: str) -> str:
    """A record's own refusal behind the place it came from, unless it names that place already."""
    return message if message.startswith(where) else f"{where}: {message}"


def convert(value: Any, kind: Any, where: str, bounds: Bounds | None = None) -> Any:
    """A value as the type that an annotation names, without guessing: text is no number, a truth value neither.

    Raises:
        InputError: it is not of that type, or not in the bounds; `where` begins the line.
    """
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any or isinstance(kind, TypeVar):
        return value
    if kind is float or kind is int:
        return (bounds or (number() if kind is float else whole(-(2**63), 2**63))).check(value, where)
    if origin is Literal:
        return _one_of(value, inside, where)
    if origin in (Union, types.UnionType):
        return _any_of(value, inside, where, bounds)
    if origin in (tuple, list):
        return _sequence(value, origin, inside, where, bounds)
    if origin is dict or origin is Mapping:
        return _mapping(value, inside, where)
    return _plain_type(value, origin or kind, where)


def _one_of(value: Any, known: tuple[Any, ...], where: str) -> Any:
    for option in known:
        if type(value) is type(option) and value == option:
            return option
    names = [str(option) for option in known]
    expected = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
    raise InputError(f"{where}: expected {expected}, got {kind_of(value)}")


def _any_of(value: Any, kinds: tuple[Any, ...], where: str, bounds: Bounds | None) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds:
        plain = get_origin(kind) or kind
        if isinstance(plain, type) and isinstance(value, plain):
            return convert(value, kind, where, bounds)
    return convert(value, kinds[0], where, bounds)


def _sequence(value: Any, origin: type, inside: tuple[Any, ...], where: str, bounds: Bounds | None) -> Any:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: expected a list, got {kind_of(value)}")
    if origin is list or (len(inside) == 2 and inside[1] is Ellipsis):
        kinds = (inside[0] if inside else Any,) * len(value)
    else:
        kinds = inside
    if len(kinds) != len(value):
        raise InputError(f"{where}: expected a list of {len(kinds)}, got one of {len(value)}")
    items = [convert(v, kind, f"{where}[{k}]", bounds) for k, (v, kind) in enumerate(zip(value, kinds, strict=True))]
    if type(value) is origin and all(new is old for new, old in zip(items, value, strict=True)):
        return value
    return origin(items)


def _mapping(value: Any, inside: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a mapping, got {kind_of(value)}")
    if not inside:
        return value
    for key in value:
        convert(key, inside[0], f"{where} (key {kind_of(key)})")
    found = {key: convert(v, inside[1], f"{where}.{key}") for key, v in value.items()}
    return value if all(found[key] is value[key] for key in value) else found


def _plain_type(value: Any, kind: Any, where: str) -> Any:
    """Truth values, text, paths, records; other classes only as instances."""
    if kind is bool:
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"{where}: expected true or false, got {kind_of(value)}")
        return bool(value)
    if kind is str:
        return _text(value, where)
    if isinstance(kind, type) and issubclass(kind, Path):
        return value if isinstance(value, Path) else Path(_text(value, where))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return from_mapping(kind, value, where)
    if isinstance(kind, type) and not getattr(kind, "_is_protocol", False) and not isinstance(value, kind):
        expected = "a mapping" if dataclasses.is_dataclass(kind) else kind.__name__
        raise InputError(f"{where}: expected {expected}, got {kind_of(value)}")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected text, got {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: expected text, got half of a surrogate pair") from None
    if any(ord(character) < 32 and character not in "\t\n" for character in value):
        raise InputError(f"{where}: expected text without control characters, got {kind_of(value)}")
    return value
