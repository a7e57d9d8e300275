"""Results as records in the program and as plain data in files.

A record is a frozen dataclass whose fields are the keys of its JSON form; one that is written otherwise has a method
`to_dict`. `engine.fields.from_mapping` makes it again of what a file holds, and says where that is something else.
"""

import math
from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from functools import partial
from typing import Any, TypeVar

from engine.errors import InputError
from engine.fields import from_mapping
from engine.files.reading import kind_of

Record = TypeVar("Record")

READ = "read"
"""Key in a field's metadata: how it is read where its type does not say so (`engine.fields.from_mapping`)."""

LATER = "later"
"""Key in a field's metadata: it came after files without it had been written, and its default is not written."""


def as_json(value: object) -> Any:
    """A record, or whatever is in one, as data for JSON: mappings, lists, text, numbers."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        held = ((own, getattr(value, own.name)) for own in fields(value))
        return {own.name: _field_as_json(own, item) for own, item in held if not _is_left_out(own, item)}
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


def as_file(record: object, form: str) -> dict[str, Any]:
    """A whole result, a record, as its JSON file holds it: what form it has, then its fields."""
    assert is_dataclass(record)
    return {"format": form} | {own.name: as_json(getattr(record, own.name)) for own in fields(record)}


def _is_left_out(own: "Field[Any]", value: object) -> bool:
    return bool(own.metadata.get(LATER)) and value == own.default


def _field_as_json(own: "Field[Any]", value: object) -> Any:
    is_none = own.metadata.get(READ) is _number_or_nan and isinstance(value, float) and not math.isfinite(value)
    return None if is_none else as_json(value)


def picked(cls: type[Record], data: object, where: str) -> Record:
    """A record of those of a mapping's entries that it has fields for; the mapping may hold more.

    Raises:
        InputError: not a mapping, or an entry is missing or of another type.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: expected a mapping, got {kind_of(data)}")
    known: tuple[Field[Any], ...] = fields(cls)  # type: ignore[arg-type]
    return from_mapping(cls, {field.name: data[field.name] for field in known if field.name in data}, where)


def part(cls: type[object]) -> dict[str, object]:
    """Metadata of a field that holds a record whose mapping in a file may have more entries."""
    return {READ: partial(picked, cls)}


def _number_or_nan(value: object, where: str) -> float:
    """A number, nan for null."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: expected a number or null, got {kind_of(value)}")
    return value


OR_NAN: dict[str, object] = {READ: _number_or_nan}
"""Metadata of a number that is nan in the program and null in JSON where it does not exist."""
