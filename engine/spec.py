"""Specs: how people write what they choose, in one language for policies, workloads, predictions, devices and others.

    spec     = NAME [ ":" rest ]         slai:offset=3,order=spf    poisson:rate=2,lengths=fixed:512,8    exp:2
    rest     = part { "," part }
    part     = KEY "=" VALUE             a setting; white space around both does not count
             | WORD                      what a name takes without a key (fixed:512,8); behind a setting whose value may
                                         hold commas it goes on with that value
    list     = spec { "," spec }         a part that is a setting belongs to the spec before it

What the names, keys and values may be is said by whoever reads a spec; how it is taken apart, put together and refused
is said here.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from engine.errors import InputError
from engine.fields import convert
from engine.files.reading import kind_of
from engine.ranges import Bounds

_TRUTH = {"true": True, "1": True, "false": False, "0": False}
_MOST_PARTS = 8
"""Parts of a list that are tried together as the name of a file with commas in it."""


@dataclass(frozen=True)
class Spec:
    """A spec taken apart at its name."""

    name: str
    """What stands before the first colon."""
    rest: str = ""
    """What stands behind it, as it was written."""

    @classmethod
    def parse(cls, text: str, separator: str = ":") -> Spec:
        """The name and the rest of a text; `separator` ends the name."""
        name, _, rest = text.partition(separator)
        return cls(name, rest)

    @classmethod
    def of_place(cls, text: str, keys: Collection[str]) -> Spec:
        """The same where the name may be a path with colons: it ends where a setting of one of `keys` begins."""
        name, *rest = re.split(rf":(?=(?:{'|'.join(keys)})=)", text, maxsplit=1)
        return cls(name, *rest)

    def __str__(self) -> str:
        """The spec as it is written."""
        return f"{self.name}:{self.rest}" if self.rest else self.name

    @property
    def words(self) -> tuple[str, ...]:
        """The parts behind the name."""
        return split_list(self.rest)

    @property
    def given(self) -> frozenset[str]:
        """The keys that the spec says something about."""
        return frozenset(key for key, equals, _ in map(_split, self.words) if equals)

    def settings(self, where: str, known: Collection[str], expected: str = "", commas: bool = False) -> dict[str, str]:
        """The settings behind the name (`read_settings`)."""
        return read_settings(self.rest, where, known, expected, commas)

    def values(self, where: str, kinds: Mapping[str, Any], commas: bool = False) -> dict[str, Any]:
        """The settings behind the name as values of these types (`parse_value`)."""
        given = self.settings(where, kinds, commas=commas)
        return {key: parse_value(text, kinds[key], f"{where}: {key}") for key, text in given.items()}

    def renamed(self, names: Mapping[str, str]) -> Spec:
        """The same with other names of some settings."""
        parts = [(names.get(key, key), equals, value) for key, equals, value in map(_split, self.words)]
        return Spec(self.name, ",".join(map("".join, parts)))

    def with_setting(self, key: str, value: object) -> Spec:
        """The same with another value of one setting, which then stands last."""
        others = [part for part in self.words if _split(part)[0] != key]
        return Spec(self.name, ",".join([*others, f"{key}={value}"]))


def _split(part: str) -> tuple[str, str, str]:
    """Key, equals sign and value of a part."""
    key, equals, value = part.partition("=")
    return key.strip(), equals, value.strip()


def split_list(text: str, separator: str = ",") -> tuple[str, ...]:
    """The parts of a list without the white space around them; empty ones are left out."""
    return tuple(filter(None, (part.strip() for part in text.split(separator))))


def read_settings(
    text: str, where: str, known: Collection[str] | None, expected: str = "", commas: bool = False
) -> dict[str, str]:
    """Settings ``key=value,key=value`` as text by key.

    Args:
        text: the settings; an empty text has none.
        where: what a message begins with.
        known: the keys there are; None: any.
        expected: what a message says about a part that is no setting with such a key (default: lists the keys).
        commas: whether values may hold commas: a part without an equals sign then goes on with the value before it.

    Raises:
        InputError: a part that is no setting, an unknown key, or a key given twice.
    """
    found: dict[str, str] = {}
    for part in _parts(text, commas):
        key, equals, value = _split(part)
        if not equals or (known is not None and key not in known):
            raise InputError(f"{where}: expected {f'{expected},' if expected else _any_of(known)} got {part!r}")
        if key in found:
            raise InputError(f"{where}: expected each key once, got {key!r} twice")
        found[key] = value
    return found


def _parts(text: str, commas: bool) -> list[str]:
    """The settings in a text; with `commas` what has no equals sign goes on with the setting before it."""
    parts: list[str] = []
    for part in map(str.strip, text.split(",") if text.strip() else ()):
        if commas and parts and "=" in parts[-1] and "=" not in part:
            parts[-1] = f"{parts[-1]},{part}"
        elif commas or part:
            parts.append(part)
    return parts


def _any_of(known: Collection[str] | None) -> str:
    return f"key=value with a key among {', '.join(known or ())};"


def parse_value(text: str, kind: object, where: str) -> Any:
    """The value that a text is, by the type of the field it is for.

    Args:
        text: what a person wrote.
        kind: bool, int, float, str, a literal, or one of them or None; the range of an annotated number counts.
        where: what a message begins with.

    Raises:
        InputError: the text is no such value, or the type is none that a text can give.
    """
    kind, *checks = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    (kind, *more), is_optional = _options(kind)
    if is_optional and text.lower() == "none":
        return None
    if get_origin(kind) is Literal:
        return convert(next((choice for choice in get_args(kind) if str(choice) == text), text), kind, where)
    if more or kind not in (bool, int, float, str):
        raise InputError(f"{where}: expected a parameter of type bool, int, float or str to set, got one of {kind}")
    return _parse_plain(text, kind, checks, where)


def _options(kind: object) -> tuple[list[Any], bool]:
    """The types of a union (or the one type) without None, and whether None is among them."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [option for option in options if option is not type(None)], type(None) in options


def _parse_plain(text: str, kind: type, checks: Sequence[Any], where: str) -> Any:
    if kind is str:
        return convert(text, str, where)
    return _parse_truth(text, where) if kind is bool else _parse_number(text, kind, checks, where)


def _parse_truth(text: str, where: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUTH:
        raise InputError(f"{where}: expected true or false, got {kind_of(text)}")
    return _TRUTH[word]


def _parse_number(text: str, kind: type, checks: Sequence[Any], where: str) -> Any:
    ranges = (check for check in checks if isinstance(check, Bounds))
    return next(ranges, Bounds(-(2**53), 2**53, whole=kind is int)).parse(text, where)


def write_settings(settings: Mapping[str, Any], write: Callable[[Any], str] = str) -> str:
    """Values as a spec has them, ``key=value,key=value``, each written by `write`."""
    return ",".join(f"{key}={write(value)}" for key, value in settings.items())


def write_spec(name: str, settings: Mapping[str, Any], write: Callable[[Any], str] = str) -> str:
    """A spec from its name and its settings."""
    return str(Spec(name, write_settings(settings, write)))


def short(value: object) -> str:
    """A value as shortly as it can be read again: ``3`` for 3.0, ``1`` for true."""
    if not isinstance(value, float):
        return str(int(value) if isinstance(value, bool) else value)
    text = f"{value:g}"
    return text if float(text) == value else repr(value)


def split_specs(text: str, is_place: Callable[[str], bool]) -> tuple[str, ...]:
    """The specs in a list; commas also stand between the settings of one spec.

    ``slai:token_budget=1024,offset=3,mine.py:Mine:k=3,j=4`` are two specs.

    Args:
        text: the list.
        is_place: whether a text names something that is there, such as a file: it then begins a spec whatever it looks
            like, and may hold commas.
    """
    specs: list[str] = []
    for part in _with_places(list(split_list(text)), is_place):
        # The key of a setting has no colon in it; a spec with settings has one before them.
        key, equals, _ = _split(part)
        goes_on = bool(equals) and ":" not in key and not is_place(part)
        if specs and goes_on:
            specs[-1] = f"{specs[-1]},{part}"
        else:
            specs.append(part)
    return tuple(specs)


def _with_places(parts: list[str], is_place: Callable[[str], bool]) -> Iterator[str]:
    """The parts of a list, those together that are the name of one place."""
    while parts:
        joined = [",".join(parts[:n]) for n in range(1, min(len(parts), _MOST_PARTS) + 1)]
        n = next((n for n, part in enumerate(joined, 1) if is_place(part)), 1)
        yield joined[n - 1]
        parts = parts[n:]
