"""The state of a vector environment as plain data, for exact resume.

An environment is a graph of arrays, generators and numbers. `snapshot` walks it along attributes, sequences and
mappings and copies what it finds under its path (``fleet.servers.0.1``); `restore` writes the copies back in place.
Functions, spaces and dataclasses (configurations) do not change in training and are left alone. So an environment
needs no code of its own for resume, as long as all of its state is in numpy arrays, generators and numbers.
"""

import copy
from collections.abc import Iterator
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space
from gymnasium.vector import VectorEnv

from agents.learning.ppo.streams import stream_state, stream_text
from engine.errors import InputError


class _Slot(NamedTuple):
    """Where a piece of state lives."""

    path: str
    value: Any
    owner: Any  # what holds it, for values that are replaced
    key: Any  # attribute name or index in the owner


def _children(value: object) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif hasattr(value, "__dict__") and not callable(value):
        yield from vars(value).items()


def _memory(value: object) -> Any:
    """The array that owns the memory of a view."""
    while isinstance(value, np.ndarray) and isinstance(value.base, np.ndarray):
        value = value.base
    return value


def _slots(slot: _Slot, seen: set[int]) -> Iterator[_Slot]:
    """The pieces of state from a place on, each once."""
    value = slot.value
    if isinstance(value, np.ndarray | np.random.Generator):
        if _is_new(value, seen):
            yield slot
    elif isinstance(value, bool | int | float | np.number | np.bool_):
        yield slot
    elif not (isinstance(value, Space | type | ModuleType | str | bytes) or is_dataclass(value) or id(value) in seen):
        seen.add(id(value))
        for name, child in _children(value):
            path = f"{slot.path}.{name}" if slot.path else str(name)
            yield from _slots(_Slot(path, child, value, name), seen)


def _is_new(value: np.ndarray | np.random.Generator, seen: set[int]) -> bool:
    """Whether an array or generator needs a place; views into what is kept as a whole (rows of a stack) need none."""
    whole = _memory(value)
    if {id(value), id(whole)} & seen or getattr(value, "dtype", None) == np.dtype(object):
        return False
    seen.add(id(whole) if getattr(value, "nbytes", 0) == getattr(whole, "nbytes", 0) else id(value))
    return True


def _slots_of(environment: VectorEnv[Any, Any, Any]) -> list[_Slot]:
    return list(_slots(_Slot("", environment, None, None), set()))


def snapshot(environment: VectorEnv[Any, Any, Any]) -> dict[str, Any]:
    """Copies of all state.

    Returns:
        path -> array, JSON text (the state of a generator), or number.
    """
    saved: dict[str, Any] = {}
    for slot in _slots_of(environment):
        if isinstance(slot.value, np.ndarray):
            # By bytes: a copy of records would leave what lies between their fields undefined.
            data = np.ascontiguousarray(slot.value).tobytes()
            saved[slot.path] = np.frombuffer(data, slot.value.dtype).reshape(slot.value.shape)
        elif isinstance(slot.value, np.random.Generator):
            saved[slot.path] = stream_text(slot.value.bit_generator)
        else:
            saved[slot.path] = copy.copy(slot.value)
    return saved


def restore(environment: VectorEnv[Any, Any, Any], saved: dict[str, Any]) -> None:
    """Put an environment into a saved state; it must be built alike and have been reset.

    Everything is checked before anything is changed.

    Raises:
        InputError: the snapshot belongs to an environment of another shape.
    """
    slots = _slots_of(environment)
    paths = {slot.path for slot in slots}
    if paths != set(saved):
        other = sorted(paths ^ set(saved))[0]
        raise InputError(f"checkpoint: expected the state of the same environment, differs at {other!r}")
    checked = [_checked(slot, saved[slot.path]) for slot in slots]
    for slot, value in zip(slots, checked, strict=True):
        _put(slot, value)


def _put(slot: _Slot, value: Any) -> None:
    """Set a slot to a checked value: arrays and generators in place; what cannot be written stays."""
    if isinstance(slot.value, np.ndarray):
        if slot.value.flags.writeable:
            slot.value[...] = value
    elif isinstance(slot.value, np.random.Generator):
        slot.value.bit_generator.state = value
    elif isinstance(slot.owner, dict | list):
        slot.owner[slot.key] = value
    elif not isinstance(slot.owner, tuple):
        setattr(slot.owner, slot.key, value)


def _checked(slot: _Slot, value: object) -> Any:
    """The saved value of a slot, as it is written there.

    Raises:
        InputError: it is of another type or shape.
    """
    own = slot.value
    if isinstance(own, np.random.Generator):
        return stream_state(own.bit_generator, value)
    if isinstance(own, np.ndarray):
        fits = isinstance(value, np.ndarray) and value.dtype == own.dtype and value.shape == own.shape
    else:
        fits = type(value) is type(own)
    if not fits:
        raise InputError(f"checkpoint: {slot.path}: expected {_kind(own)}, got {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
