"""Compiled functions without numba's look at the types of what they are given, which takes ten times as long as a call.

Numba's dispatcher works out the types of all arguments anew at each call: of records and arrays of them 5 us, and 45 us
where a server has done something else in between. The entry itself takes 1 and 11 us.
"""

from collections.abc import Callable
from typing import Any

from numba.core.dispatcher import Dispatcher


def entry(function: Dispatcher, *args: object) -> Callable[..., Any]:
    """The machine code of a compiled function for arguments of these types, compiled now if it was not before.

    Args:
        function: of `engine.compiled.jit.hot` or `engine.compiled.kept.kept`.
        args: examples of what it will be given; only their types matter, and they must stay what they are.
    """
    signature = tuple(function.typeof_pyval(value) for value in args)
    if signature not in function.overloads:
        function.compile(signature)
    compiled: Any = function.overloads[signature]
    found: Callable[..., Any] = compiled.entry_point
    return found
