"""Random generators in states from outside, checked: numpy itself checks few of their numbers."""

from typing import Any

import numpy as np

from engine.errors import InputError
from llmsched_env.inputs import is_whole, show

GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
"""numpy's bit generators: those whose state a stored one may hold."""

_MT19937_WORDS = 624


def generator_at(state: Any, present: np.random.Generator) -> np.random.Generator:
    """The present generator in a stored state, or a new one if that belongs to another bit generator.

    Raises:
        InputError: not the state of one of numpy's generators; the present one stays as it is.
    """
    kind = state.get("bit_generator") if isinstance(state, dict) else None
    if kind not in GENERATORS or not _numbers_are_legal(state):
        raise InputError(f"state: expected the state of one of numpy's generators, got {show(state)}")
    if kind != type(present.bit_generator).__name__:
        present = np.random.Generator(getattr(np.random, kind)(0))
    before = present.bit_generator.state
    try:
        present.bit_generator.state = state
    except (TypeError, ValueError, KeyError, OverflowError, IndexError) as error:
        present.bit_generator.state = before
        raise InputError(f"state: expected the state of a {kind} generator, got a damaged one ({error})") from None
    return present


def _numbers_are_legal(state: dict[str, Any]) -> bool:
    """Whether all numbers are whole, and positions within a generator's own buffers lie in them: numpy takes any."""
    inner = state["state"] if isinstance(state.get("state"), dict) else {}
    if not all(_is_number_of_state(value) for part in (state, inner) for value in part.values()):
        return False
    places = (inner.get("pos", 0), _MT19937_WORDS), (state.get("buffer_pos", 0), 4)
    return all(is_whole(place) and 0 <= place <= most for place, most in places)


def _is_number_of_state(value: object) -> bool:
    """Whether numpy would not cut a fraction off; names and what lies inside are not looked at."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu"
    return isinstance(value, str | dict) or is_whole(value)
