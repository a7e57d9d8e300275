"""The states of numpy's bit generators as text, and back: checked, for numpy itself checks no position."""

import json
from typing import Any

import numpy as np

from engine.errors import InputError

_WORDS = {"pos": 624, "buffer_pos": 4}
"""Largest positions: in the words of MT19937, in the buffer of Philox."""


def stream_text(bit_generator: np.random.BitGenerator) -> str:
    """The state of a bit generator as JSON text."""
    return json.dumps(bit_generator.state, default=lambda a: a.tolist() if hasattr(a, "tolist") else int(a))


def stream_state(bit_generator: np.random.BitGenerator, text: object) -> dict[str, Any]:
    """The state that `stream_text` wrote.

    Args:
        bit_generator: one of the kind that it belongs to.
        text: what was written.

    Raises:
        InputError: something else, or a state that the generator cannot have.
    """
    name = type(bit_generator).__name__
    state = json.loads(text) if isinstance(text, str) else None
    words = state.get("state") if isinstance(state, dict) and state.get("bit_generator") == name else None
    if not isinstance(state, dict) or not isinstance(words, dict):
        raise InputError(f"checkpoint: expected the state of a {name}")
    _check_positions(state | words, name)
    if "key" in words:
        words["key"] = _key(words["key"], bit_generator)
    type(bit_generator)().state = state  # raises where it does not fit
    return state


def _check_positions(numbers: dict[str, Any], name: str) -> None:
    for key, most in _WORDS.items():
        if key in numbers and not (type(numbers[key]) is int and 0 <= numbers[key] <= most):
            raise InputError(f"checkpoint: expected the state of a {name}, got {key} = {numbers[key]!r}")


def _key(words: object, bit_generator: np.random.BitGenerator) -> np.ndarray:
    """The words of a key, as many as the generator has."""
    name, state = type(bit_generator).__name__, bit_generator.state
    key = np.array(words, np.uint32 if name == "MT19937" else np.uint64)
    if key.shape != state["state"]["key"].shape:
        raise InputError(f"checkpoint: expected the state of a {name}, got another number of words")
    return key
