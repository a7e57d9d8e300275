"""Compiled functions on disk: numba's cache, which believes no file that is damaged or somebody else's.

A file ends with the digest of what is before it, names what it belongs to, and is read only if this user owns it and
nobody else may write it. Whatever else is found counts as nothing: the function is compiled again, its file replaced.
"""

import contextlib
import hashlib
import io
import os
import pickle
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numba import njit
from numba.core import caching
from numba.core.serialize import dumps

from engine.compiled import cache
from engine.compiled.source import SourceCompiler, bind_environments, source_target

if TYPE_CHECKING:
    from numba.core.compiler import CompileResult

_DIGEST_BYTES = hashlib.sha256().digest_size
_njit: Any = njit  # numba's type hints do not know its internal options
_numba: Any = caching  # and these classes have none


class _Locator(_numba.UserProvidedCacheLocator):  # type: ignore[misc]
    """Puts the code of a file's functions into a folder of the file's in the cache."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._py_file = py_file
        self._lineno = py_func.__code__.co_firstlineno
        folder = cache.own_folders.get(py_file) or cache.place()
        self._cache_path = os.path.join(str(folder), self.get_suitable_cache_subpath(py_file))

    def ensure_cache_path(self) -> None:
        os.makedirs(self._cache_path, exist_ok=True)
        if not os.access(self._cache_path, os.W_OK | os.X_OK):
            os.chmod(self._cache_path, 0o700)

    @classmethod
    def from_function(cls, py_func: object, py_file: str) -> Any:
        return (
            None
            if cache.place() is None
            else super(_numba.UserProvidedCacheLocator, cls).from_function(py_func, py_file)
        )


class _Impl(_numba.CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator, _numba.IPythonCacheLocator)


def _read(path: str) -> bytes:
    """What is in a file.

    Raises:
        OSError: no such file, or not a regular one of this user that nobody else may write.
        ValueError: it is damaged.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not (stat.S_ISREG(found.st_mode) and cache.is_ours(found)):
            raise OSError(f"{path}: not a file of this user")
        if os.name == "posix" and found.st_mode & 0o022:
            raise OSError(f"{path}: others may write it")
        data = file.read()
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError(f"{path}: damaged")
    return body


def _write(path: str, body: bytes) -> None:
    temporary = f"{path}.tmp.{uuid.uuid4().hex[:16]}"
    try:
        with open(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600), "wb"
        ) as f:
            f.write(body + hashlib.sha256(body).digest())
        os.chmod(temporary, 0o600)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


class _Files(_numba.IndexDataCacheFile):  # type: ignore[misc]
    """An index and a file for each signature; what two processes write at once is at worst written again."""

    def save(self, key: object, data: object) -> None:
        index = self._load_index()
        name = index.get(key) or f"{self._index_name.removesuffix('.nbi')}.{uuid.uuid4().hex[:16]}.nbc"
        _write(self._data_path(name), dumps((key, data)))
        self._save_index(index | {key: name})

    def load(self, key: object) -> Any:
        if (name := self._load_index().get(key)) is None:
            return None
        found, data = pickle.loads(_read(self._data_path(name)))
        return data if found == key else None

    def _load_index(self) -> dict[Any, str]:
        try:
            stream = io.BytesIO(_read(self._index_path))
            if pickle.load(stream) != self._version:
                return {}
            stamp, index = pickle.load(stream)
        except Exception:  # whatever is wrong with it, it will be written anew
            return {}
        return index if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        _write(self._index_path, pickle.dumps(self._version) + dumps((self._source_stamp, overloads)))


class _SourceImpl(_Impl):
    def rebuild(self, target_context: object, payload: object) -> Any:
        return super().rebuild(source_target(target_context), payload)


class _Functions(_numba.FunctionCache):  # type: ignore[misc]
    def __init__(self, py_func: Any, source: bool) -> None:
        self._impl_class = _SourceImpl if source else _Impl
        super().__init__(py_func)
        stamp = self._impl.locator.get_source_stamp()
        name = f"{self._impl.filename_base}.source" if source else self._impl.filename_base
        self._cache_file = _Files(self._cache_path, name, stamp)


class Kept(_numba.NullCache):  # type: ignore[misc]
    """The cache of one function, looked for when it is first needed; without a place for it, none."""

    full = False  # for all: the disk has refused to take more

    def __init__(self, py_func: object, source: bool = False) -> None:
        self._function = py_func
        self.source = source  # whether it is kept as LLVM's code
        self._found: Any = None

    def _cache(self) -> Any:
        if self._found is None:
            try:
                self._found = _Functions(self._function, self.source)
            except (RuntimeError, OSError):
                # No place, or a function without a file (typed into an interpreter).
                self._found = _numba.NullCache()
        return self._found

    @property
    def cache_path(self) -> Any:
        """The folder of this function's files."""
        return self._cache().cache_path

    def load_overload(self, sig: object, target_context: object) -> Any:
        """The function compiled for a signature, as far as it is kept; None: compile it."""
        try:
            return self._cache().load_overload(sig, target_context)
        except Exception:  # damaged or not ours: compiled again, and replaced
            return None

    def save_overload(self, sig: object, data: "CompileResult") -> None:
        """Keep what was compiled, unless the disk takes no more."""
        bind_environments(data)
        if Kept.full:
            return
        try:
            self._cache().save_overload(sig, data)
        except OSError as error:
            Kept.full = True
            cache.warn(cache.place() or Path(), error)


def kept(function: Callable[..., Any], signature: object = None, source: bool = False, **options: Any) -> Any:
    """Compile a function, or take it from the cache: at its first call, or at once for a given signature.

    Args:
        function: what to compile.
        signature: numba's; None compiles for the arguments of each call.
        source: compile it only with the compiled functions that call it (`engine.compiled.source`).
        options: of `numba.njit`.
    """
    if source:
        options["pipeline_class"] = SourceCompiler
    dispatcher = _njit(**options)(function)
    if not hasattr(dispatcher, "_cache"):  # NUMBA_DISABLE_JIT
        return dispatcher
    dispatcher._cache = Kept(function, source)
    if signature is not None:
        dispatcher.compile(signature)
        dispatcher.disable_compile()
    return dispatcher
