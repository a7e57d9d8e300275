"""The state of a vector environment as plain data, for exact resume.

An environment is a graph of arrays, generators and numbers. `snapshot` walks it along attributes, sequences and
mappings and copies what it finds under its path (``fleet.servers.0.1``); `restore` writes the copies back in place.
Functions, spaces and dataclasses (configurations) do not change in training and are left alone. So an environment
needs no code of its own for resume, as long as all of its state is in numpy arrays, generators and numbers.
"""

import copy
import json
import zlib
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space

from engine.errors import InputError


class _Slot(NamedTuple):
    """Where a piece of state lives."""

    path: str
    value: Any
    owner: Any  # what holds it, for values that are replaced
    key: Any  # attribute name or index in the owner


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif hasattr(value, "__dict__") and not callable(value):
        yield from vars(value).items()


def _slots(owner: Any, key: Any, value: Any, path: str, seen: set[int]) -> Iterator[_Slot]:
    if isinstance(value, np.ndarray | np.random.Generator):
        if id(value) not in seen and getattr(value, "dtype", None) != np.dtype(object):
            seen.add(id(value))
            yield _Slot(path, value, owner, key)
    elif isinstance(value, bool | int | float | np.number | np.bool_):
        yield _Slot(path, value, owner, key)
    elif isinstance(value, Space | type | ModuleType | str | bytes) or is_dataclass(value) or id(value) in seen:
        return
    else:
        seen.add(id(value))
        for name, child in _children(value):
            yield from _slots(value, name, child, f"{path}.{name}" if path else str(name), seen)


def snapshot(environment: Any) -> dict[str, Any]:
    """Copies of all state: arrays compressed (zlib), generators as JSON text, numbers as they are.

    Returns:
        path -> number, JSON text, or (dtype, shape, bytes).
    """
    saved: dict[str, Any] = {}
    for slot in _slots(None, None, environment, "", set()):
        if isinstance(slot.value, np.ndarray):
            data = zlib.compress(np.ascontiguousarray(slot.value).view(np.ndarray).tobytes(), 1)
            saved[slot.path] = (str(slot.value.dtype), tuple(slot.value.shape), data)
        elif isinstance(slot.value, np.random.Generator):
            saved[slot.path] = json.dumps(slot.value.bit_generator.state, default=lambda a: a.tolist())
        else:
            saved[slot.path] = copy.copy(slot.value)
    return saved


def restore(environment: Any, saved: dict[str, Any]) -> None:
    """Put an environment into a saved state; it must be built alike and have been reset.

    Raises:
        InputError: the snapshot belongs to an environment of another shape.
    """
    slots = list(_slots(None, None, environment, "", set()))
    paths = {slot.path for slot in slots}
    if paths != set(saved):
        other = sorted(paths ^ set(saved))[0]
        raise InputError(f"checkpoint: expected the state of the same environment, differs at {other!r}")
    for slot in slots:
        value = saved[slot.path]
        if isinstance(slot.value, np.ndarray):
            _fill(slot, value)
        elif isinstance(slot.value, np.random.Generator):
            slot.value.bit_generator.state = json.loads(value)
        elif isinstance(slot.owner, dict | list):
            slot.owner[slot.key] = value
        elif not isinstance(slot.owner, tuple):
            setattr(slot.owner, slot.key, value)


def _fill(slot: _Slot, saved: tuple[str, tuple[int, ...], bytes]) -> None:
    dtype, shape, data = saved
    if dtype != str(slot.value.dtype) or tuple(shape) != slot.value.shape:
        raise InputError(
            f"checkpoint: {slot.path}: expected {slot.value.dtype}{list(slot.value.shape)}, got {dtype}{list(shape)}"
        )
    values = np.frombuffer(zlib.decompress(data), slot.value.dtype)
    if slot.value.flags.writeable:
        slot.value[...] = values.reshape(shape)
