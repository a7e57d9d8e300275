"""`hot`: how the functions on the hot path are compiled.

They only read and write arrays that somebody else owns, so counting references to those arrays, which numba does with
atomic operations at every use, is wasted: without it a simulation takes half the time. Such a function cannot allocate
(numba refuses at compile time), and one that returns arrays may only be called from another such function: a caller
that counts would release what was never counted. The switch, ``_nrt=False``, is numba's internal one, hence this single
place.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

_njit: Any = njit  # numba's type hints do not know the switch


def hot(function: Callable[..., Any], signature: Any = None) -> Any:
    """Compile without reference counting, cached on disk: at first call, or at once for a given signature."""
    options = {"cache": True, "_nrt": False}
    return _njit(**options)(function) if signature is None else _njit(signature, **options)(function)
