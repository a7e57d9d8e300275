"""Fields of records and what people write into them: types and ranges checked, mappings made to records.

`checked` checks the fields of a frozen dataclass at construction against what they declare (`engine.ranges`), and
`from_mapping` makes such a record of what a file holds. Every refusal is one line with what was expected, what came and
where (file and dotted field).
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from engine.errors import InputError
from engine.files.reading import kind_of
from engine.ranges import Bounds, Readable, number, whole

T = TypeVar("T")


def checked(record: object, where: str, untyped: Collection[str] = ()) -> None:
    """Check every field of a frozen dataclass against its annotation, from its ``__post_init__``.

    A range is part of the annotation: ``rate: Annotated[float, number(0.0, 1e9)]``, or one of the names above; without
    one a number only has to be finite. Numbers of numpy become those of Python, lists become tuples where tuples are
    declared.

    Args:
        record: the instance; its fields are set anew where their value is converted.
        where: what names the record in messages, a dot between it and the field ("env" for env.rates); nothing is put
            after a space ("policy 'slai': ").
        untyped: fields that are left alone.

    Raises:
        InputError: a field does not fit; names it.
    """
    place = where if not where or where[-1] in " ." else f"{where}."
    cls: Any = type(record)
    for declared in _declared(cls):
        name = declared.name
        value = getattr(record, name)
        if declared.is_plainly(value) or name in untyped:
            continue
        new = convert(value, declared.kind, place + name)
        if new is not value:
            object.__setattr__(record, name, new)


class _Declared(NamedTuple):
    """A field as its class declares it."""

    name: str
    kind: Any
    """The annotation, with its range."""
    plain: Any
    """The type behind the annotation."""
    limits: Bounds | None
    """The range of a number."""

    def is_plainly(self, value: Any) -> bool:
        """Whether a value is seen at a glance to be what it should: most are, and records are made for every episode.

        A number on the edge of its range is left to the closer look.
        """
        if type(value) is not self.plain:
            return False
        if self.plain is float or self.plain is int:
            return self.limits is not None and self.limits.low < value < self.limits.high
        return self.kind is bool or (self.kind is str and value.isascii() and value.isprintable())


@cache
def _declared(cls: object) -> tuple[_Declared, ...]:
    """The fields of a dataclass with their ranges."""
    found = []
    for name, kind in types_of(cls, with_ranges=True).items():
        plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
        found.append(_Declared(name, kind, plain, limits_of(kind)))
    return tuple(found)


def limits_of(kind: object) -> Bounds | None:
    """The range that an annotation declares for a number, perhaps an optional one; None: none."""
    declared = (one for one in (kind, *get_args(kind)) if get_origin(one) is Annotated)
    return next((check for one in declared for check in get_args(one)[1:] if isinstance(check, Bounds)), None)


def types_of(cls: object, with_ranges: bool = False) -> dict[str, Any]:
    """The types of a dataclass's fields, resolved; those of a user's class that cannot be resolved say nothing."""
    return _types(cls, with_ranges)


@cache
def _types(cls: Any, with_ranges: bool) -> dict[str, Any]:
    try:
        found = get_type_hints(cls, include_extras=with_ranges)
    except (NameError, TypeError, AttributeError):
        found = {}
    return {field.name: found.get(field.name, Any) for field in dataclasses.fields(cls)}


def from_mapping(cls: type[T], data: object, where: str) -> T:
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
    _check_keys(data, fields, where)
    hints = types_of(cls)  # ranges are for the record itself to check
    values = {}
    for key, value in data.items():
        # A field that people may write in more than one form says itself how it is read.
        read = fields[key].metadata.get("read")
        values[key] = read(value, f"{where}.{key}") if read else convert(value, hints[key], f"{where}.{key}")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(_placed(str(error), where)) from None


def _check_keys(data: Mapping[Any, object], fields: Mapping[str, dataclasses.Field[Any]], where: str) -> None:
    """Refuse a key that is no field, and a field without a default that is no key."""
    for key in data:
        if key not in fields:
            raise InputError(f"{where}: unknown key {kind_of(key)}, known: {', '.join(fields)}")
    for name, field in fields.items():
        if name not in data and field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: missing key {name!r}")


def _placed(message: str, where: str) -> str:
    """A record's own refusal behind the place it came from, unless it names that place already."""
    return message if message.startswith(where) else f"{where}: {message}"


def convert(value: object, kind: object, where: str) -> Any:
    """A value as the type that an annotation names, without guessing: text is no number, a truth value neither.

    Raises:
        InputError: it is not of that type, or not in the range that the annotation says; `where` begins the line.
    """
    origin = get_origin(kind)
    if origin in _COMPOSED:
        return _COMPOSED[origin](value, get_args(kind), where)
    if kind is Any or isinstance(kind, TypeVar):
        return value
    if kind is float or kind is int:
        return _NUMBERS[kind].check(value, where)
    return _plain_type(value, origin or kind, where)


def _annotated(value: Any, inside: tuple[Any, ...], where: str) -> Any:
    """A value as a type, within what its annotation says besides."""
    kind, *checks = inside
    if not any(isinstance(check, Bounds) for check in checks):
        value = convert(value, kind, where)
    for check in checks:
        if isinstance(check, Bounds | Readable):
            value = check.check(value, where)
    return value


def _one_of(value: object, known: tuple[Any, ...], where: str) -> Any:
    for option in known:
        if isinstance(value, type(option)) and isinstance(value, bool) is isinstance(option, bool) and value == option:
            return option
    names = [str(option) for option in known]
    expected = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]
    raise InputError(f"{where}: expected {expected}, got {kind_of(value)}")


def _any_of(value: object, kinds: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    return convert(value, next((kind for kind in kinds if _is_instance(value, kind)), kinds[0]), where)


def _is_instance(value: object, kind: object) -> bool:
    """Whether a value is of the class behind an annotation."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else get_origin(kind) or kind
    return isinstance(plain, type) and isinstance(value, plain)


def _list(value: object, inside: tuple[Any, ...], where: str) -> Any:
    items = _items(value, inside[:1] or (Any,), where)
    return value if type(value) is list and _are_same(items, value) else items


def _tuple(value: object, inside: tuple[Any, ...], where: str) -> Any:
    each = inside[:1] if len(inside) == 2 and inside[1] is Ellipsis else None
    if each is None and isinstance(value, list | tuple) and len(value) != len(inside):
        raise InputError(f"{where}: expected a list of {len(inside)}, got one of {len(value)}")
    items = _items(value, each or inside, where)
    return value if type(value) is tuple and _are_same(items, value) else tuple(items)


def _items(value: object, kinds: tuple[Any, ...], where: str) -> list[Any]:
    """The items of a list, each as its type; one type stands for all."""
    if not isinstance(value, list | tuple):
        raise InputError(f"{where}: expected a list, got {kind_of(value)}")
    return [convert(v, kinds[k if len(kinds) > 1 else 0], f"{where}[{k}]") for k, v in enumerate(value)]


def _are_same(new: Sequence[Any], old: Sequence[Any]) -> bool:
    return all(a is b for a, b in zip(new, old, strict=True))


def _mapping(value: object, inside: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: expected a mapping, got {kind_of(value)}")
    if not inside:
        return value
    for key in value:
        convert(key, inside[0], f"{where} (key {kind_of(key)})")
    found = {key: convert(v, inside[1], f"{where}.{key}") for key, v in value.items()}
    return value if all(found[key] is value[key] for key in value) else found


_NUMBERS: dict[Any, Bounds] = {float: number(), int: whole(-(2**63), 2**63)}
"""Numbers without a range of their own."""
_COMPOSED: dict[Any, Callable[[Any, tuple[Any, ...], str], Any]] = {
    Annotated: _annotated,
    Literal: _one_of,
    Union: _any_of,
    types.UnionType: _any_of,
    list: _list,
    tuple: _tuple,
    dict: _mapping,
    Mapping: _mapping,
}
"""What reads the types that are made of others."""


def _plain_type(value: object, kind: object, where: str) -> Any:
    """Truth values, text, paths, records; other classes only as instances."""
    if not isinstance(kind, type):
        return value
    if kind is bool:
        return _truth(value, where)
    if kind is str:
        return _text(value, where)
    if issubclass(kind, Path):
        return value if isinstance(value, Path) else Path(_text(value, where))
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_mapping(kind, value, where)
    if not getattr(kind, "_is_protocol", False) and not isinstance(value, kind):
        expected = "a mapping" if dataclasses.is_dataclass(kind) else kind.__name__
        raise InputError(f"{where}: expected {expected}, got {kind_of(value)}")
    return value


def _truth(value: object, where: str) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{where}: expected true or false, got {kind_of(value)}")
    return bool(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected text, got {kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: expected text, got half of a surrogate pair") from None
    if any(ord(character) < 32 and character not in "\t\n" for character in value):
        raise InputError(f"{where}: expected text without control characters, got {kind_of(value)}")
    return value
