"""The ways to compile a function, and when to use which.

- `hot`: a loop or a small step that Python calls too.
- `hot_inlined`: the same for what runs in every iteration of compiled loops: it becomes part of each of them.
- `inner`: what only compiled code calls; most functions. It becomes part of its callers, and the source is interpreted
  when Python calls it.
- `engine.server.policy.HotKernel`: the plan function of a policy or the kernel of an action. All have one signature, so
  that one compiled loop serves every policy; `Kernel` is for those that make arrays.
- `engine.compiled.kept.kept`: what makes arrays or takes objects: numba as it is, kept on disk, as all of them are.

Functions on the hot path only read and write arrays that somebody else owns, so counting references to those arrays,
which numba does with atomic operations at every use, is wasted: without it a simulation takes half the time. Such a
function cannot allocate (numba refuses at compile time), and one that returns arrays may only be called from another
such function: a caller that counts would release what was never counted. The switch, ``_nrt=False``, is numba's
internal one, hence this single place.

What a cold start costs is machine code and the entries from Python, which take arrays of records apart: `inner` needs
neither (`engine.compiled.source`). Each copy of a long function in its callers costs as well: call it at one place.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from engine.compiled.kept import kept
from engine.compiled.source import Called

_OPTIONS = {"_nrt": False}


class _Inner:
    """A function with two faces: what compiled code calls, and what Python calls."""

    def __init__(self, dispatcher: Any, function: Callable[..., Any], from_python: Callable[..., Any]) -> None:
        self._dispatcher = dispatcher  # numba's type holds it only weakly
        self._numba_type_ = Called(dispatcher)
        self.py_func = function
        self._from_python = from_python

    def __call__(self, *args: Any) -> Any:
        return self._from_python(*args)

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


def hot(function: Callable[..., Any], signature: object = None, **options: Any) -> Any:
    """Compile without reference counting, cached on disk: at first call, or at once for a given signature.

    Args:
        function: what to compile.
        signature: numba's.
        options: further ones of `numba.njit`: with `nogil` other threads of Python go on while it runs.
    """
    return kept(function, signature, **_OPTIONS, **options)


def hot_inlined(function: Callable[..., Any]) -> Any:
    """As `hot`, and compiled into every loop that calls it.

    A call takes a server apart into more than a hundred words, which are copied to the stack at every iteration.
    """
    return inner(function, source=hot(function))


def inner(function: Callable[..., Any], source: Callable[..., Any] | None = None) -> Any:
    """As `hot`, for what only compiled code calls; from Python the source is interpreted, or another given."""
    options = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": True}
    return _Inner(kept(function, source=True, **options), function, source or function)
