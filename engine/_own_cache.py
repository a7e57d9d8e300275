"""Where the compiled kernels of users are kept.

Numba looks at the time stamp of the one file that a function is in; a kernel that takes functions from another file of
the user's would go stale when that one changes. So kernels that are not ours get a folder of their own inside the cache
folder, named after the contents of all files behind them.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
from numba.core.dispatcher import Dispatcher

from engine.own_code import is_ours, modules_behind, source_digest

_KEEP = 16
_settled: set[str] = set()
"""Digests whose functions know their folder already."""


@contextmanager
def kernel_cache(function: Callable[..., Any]) -> Iterator[bool]:
    """Compile inside; the value says whether the result may be cached on disk."""
    module = sys.modules.get(function.__module__)
    file = function.__code__.co_filename
    if is_ours(file):
        yield True
        return
    if module is None or not Path(file).is_file() or not _is_writable(str(numba.config.CACHE_DIR)):  # type: ignore[attr-defined]
        yield False
        return
    before = vars(numba.config)["CACHE_DIR"]
    digest = source_digest(module)
    folder = Path(before) / "own" / digest
    vars(numba.config)["CACHE_DIR"] = str(folder)
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _forget_old(folder)
        if digest not in _settled:
            _settle(module)
            _settled.add(digest)
        yield True
    finally:
        vars(numba.config)["CACHE_DIR"] = before


def _is_writable(folder: str) -> bool:
    return bool(folder) and os.access(folder, os.W_OK)


def _settle(module: ModuleType) -> None:
    """Let the compiled functions of the user's modules use the present folder, too."""
    for one in modules_behind(module):
        for value in list(vars(one).values()):
            function: Any = getattr(value, "_dispatcher", value)
            cached = isinstance(function, Dispatcher) and type(vars(function)["_cache"]).__name__ != "NullCache"
            if cached and not is_ours(function.py_func.__code__.co_filename):
                function.enable_caching()


def _forget_old(current: Path) -> None:
    def age(folder: Path) -> float:
        try:
            return folder.stat().st_mtime
        except OSError:  # another process has removed it
            return 0.0

    others = [folder for folder in current.parent.iterdir() if folder != current]
    for folder in sorted(others, key=age)[: -(_KEEP - 1)]:
        shutil.rmtree(folder, ignore_errors=True)
