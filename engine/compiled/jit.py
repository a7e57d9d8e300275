"""`hot` and `inner`: how the functions on the hot path are compiled.

They only read and write arrays that somebody else owns, so counting references to those arrays, which numba does with
atomic operations at every use, is wasted: without it a simulation takes half the time. Such a function cannot allocate
(numba refuses at compile time), and one that returns arrays may only be called from another such function: a caller
that counts would release what was never counted. The switch, ``_nrt=False``, is numba's internal one, hence this single
place.

Numba also compiles for every function a second one that unpacks Python arguments, and with records of arrays that one
can take longer than the function itself. `inner` leaves it out for what only compiled code calls often.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from numba import types

from engine.compiled.kept import kept

_OPTIONS = {"_nrt": False}


class _Inner:
    """A function without a compiled entry from Python: numba sees its compiled form, Python runs its source."""

    def __init__(self, dispatcher: Any, source: Callable[..., Any]) -> None:
        self._dispatcher = dispatcher  # numba's type holds it only weakly
        self._numba_type_ = types.Dispatcher(dispatcher)
        self.py_func = source

    def __call__(self, *args: Any) -> Any:
        return self.py_func(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        """What it is made of, the same in every process: numba finds what closes over it in its cache by this form."""
        closed = tuple(cell.cell_contents for cell in self.py_func.__closure__ or ())
        return _inner_again, (self.py_func.__module__, self.py_func.__qualname__, closed)


def _inner_again(module: str, name: str, closed: tuple[Any, ...]) -> Any:
    """The function of that name at the top of a module; one that closes over others cannot come back.

    Raises:
        AttributeError: there is none.
    """
    return getattr(import_module(module), name)


def hot(function: Callable[..., Any], signature: object = None) -> Any:
    """Compile without reference counting, cached on disk: at first call, or at once for a given signature."""
    return kept(function, signature, **_OPTIONS)


def hot_inlined(function: Callable[..., Any]) -> Any:
    """As `hot`, and compiled into every loop that calls it.

    A call takes a server apart into more than a hundred words, which are copied to the stack at every iteration.
    """
    return kept(function, **_OPTIONS, forceinline=True)


def inner(function: Callable[..., Any], source: Callable[..., Any] | None = None) -> Any:
    """As `hot`, at first use, for what compiled code calls; from Python the source is interpreted, or another given."""
    dispatcher = kept(function, **_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True)
    return _Inner(dispatcher, source or function)


def called(function: Callable[..., Any]) -> Any:
    """As `inner`, but compiled once and called: for what is so long that each copy of it takes seconds to compile."""
    return _Inner(kept(function, **_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True), function)


def compile_kernel(function: Callable[..., Any], signature: object, allocates: bool) -> Any:
    """A policy's plan function compiled for the one signature of kernels.

    Args:
        function: the plan function.
        signature: of every kernel.
        allocates: whether it makes arrays, so that references must be counted.
    """
    return kept(function, signature, **({} if allocates else _OPTIONS))
