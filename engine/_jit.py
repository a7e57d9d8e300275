"""`hot`: how the functions on the hot path are compiled.

They only read and write arrays that somebody else owns, so counting references to those arrays, which numba does with
atomic operations at every use, is wasted: without it a simulation takes half the time. Such a function cannot allocate
(numba refuses at compile time). The switch, ``_nrt=False``, is numba's internal one, hence this single place.
"""

from collections.abc import Callable
from typing import Any

from numba import njit


def hot(function: Callable[..., Any] | None = None, *, inline: str = "never") -> Any:
    """Compile at first call, cached on disk, without reference counting: ``@hot`` or ``@hot(inline="always")``."""
    decorator = njit(cache=True, _nrt=False, inline=inline)
    return decorator if function is None else decorator(function)
