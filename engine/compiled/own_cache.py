"""Where the compiled kernels of users are kept.

Numba looks at the time stamp of the one file that a function is in; a kernel that takes functions from another file of
the user's would go stale when that one changes. So kernels that are not ours get a folder of their own inside the cache
folder, named after the contents of all files behind them.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from numba.core.dispatcher import Dispatcher

from engine.compiled import cache
from engine.compiled.kept import Kept
from engine.own_code import is_ours, modules_behind, source_digest

_KEEP = 16
_settled: set[str] = set()
"""Digests whose functions know their folder already."""


def settle(function: Callable[..., Any]) -> None:
    """Let a user's kernel and the compiled functions of the modules behind it use the folder of their contents."""
    module, base = sys.modules.get(function.__module__), cache.place()
    file = function.__code__.co_filename
    if is_ours(file) or module is None or base is None or not Path(file).is_file():
        return
    digest = source_digest(module)
    if digest in _settled:
        return
    _settled.add(digest)
    folder = base / "own" / digest
    _forget_old(folder)
    for code in _files(module):
        cache.own_folders[code] = folder
    for value in _compiled(module):
        value._cache = Kept(value.py_func, getattr(value._cache, "source", False))


def _files(module: ModuleType) -> list[str]:
    return [file for one in modules_behind(module) if (file := getattr(one, "__file__", None))]


def _compiled(module: ModuleType) -> list[Any]:
    """Functions of a user's modules that numba would keep elsewhere."""
    values = (value for one in modules_behind(module) for value in list(vars(one).values()))
    functions: list[Any] = [getattr(value, "_dispatcher", value) for value in values]
    return [f for f in functions if isinstance(f, Dispatcher) and _is_kept(f) and not is_ours(_file(f))]


def _is_kept(function: object) -> bool:
    return type(vars(function)["_cache"]).__name__ != "NullCache"


def _file(function: Any) -> str:
    return str(function.py_func.__code__.co_filename)


def _forget_old(current: Path) -> None:
    def age(folder: Path) -> float:
        try:
            return folder.stat().st_mtime
        except OSError:  # another process has removed it
            return 0.0

    if current.is_dir() or not current.parent.is_dir():
        return
    for folder in sorted(current.parent.iterdir(), key=age)[: -(_KEEP - 1)]:
        shutil.rmtree(folder, ignore_errors=True)
