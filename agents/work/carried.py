"""Files that pieces of work name and that go with them to machines which may not have them."""

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from engine.errors import InputError
from engine.files.reading import TRACE, file_digest, read_bytes

_with_files: ContextVar[bool] = ContextVar("with_files", default=False)


@contextmanager
def with_files() -> Iterator[None]:
    """What is pickled inside takes its files along."""
    token = _with_files.set(True)
    try:
        yield
    finally:
        _with_files.reset(token)


def takes_files() -> bool:
    """Whether what is pickled now takes its files along."""
    return _with_files.get()


@dataclass(frozen=True)
class CarriedFile:
    """A file by its path and its content."""

    path: str
    digest: str
    content: bytes

    @classmethod
    def of(cls, path: str, what: str) -> "CarriedFile":
        """The file as it is now.

        Args:
            path: the file.
            what: what it is, for messages.

        Raises:
            InputError: it cannot be read.
        """
        return cls(path, file_digest(path), read_bytes(path, what, TRACE))

    def here(self) -> str:
        """Where it is on this machine: at its own path, if the same file is there, else in a folder of this process."""
        try:
            if file_digest(self.path) == self.digest:
                return self.path
        except InputError:
            pass
        path = _folder() / self.digest / Path(self.path).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.content)
        return str(path)


@lru_cache(maxsize=1)
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="llmsched-files-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
