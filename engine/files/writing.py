"""Writing files: whole or not at all, through links and into devices, and standard output for ``-``.

A regular file is replaced by a new one that was written beside it, so that a full disk or a kill leaves the old one as
it was; its mode and owner are kept and links to it stay links (another hard link keeps the old content). What is no
regular file, a device, a FIFO or a descriptor of this process (``/dev/stdout``, ``/dev/fd/3``), is written through.
"""

import contextlib
import errno
import os
import re
import select
import stat
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TextIO

from engine.errors import InputError

STDOUT = Path("-")
"""Stands for standard output wherever a result file is named."""
TEMPORARY = ".llmsched-*.tmp"
"""Names of the files that are being written; what a killed process left of them may be deleted."""

_DESCRIPTOR = re.compile(r"/(?:dev/fd|proc/(?:self|thread-self|\d+)/fd)/(\d+)")
_STANDARD = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_IN_PLACE = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV)
"""Why a file that may be written cannot be replaced: it is a mount point, or its folder may not be changed."""
_numbers = count()
_result_streams: list[TextIO] = []


@contextlib.contextmanager
def text_to_stderr() -> Iterator[None]:
    """Inside, standard output is for the result that goes to ``-``: what is printed goes to standard error."""
    if sys.stdout is None:
        raise InputError("-: cannot write (standard output is closed)")
    _result_streams.append(sys.stdout)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = _result_streams.pop()


def is_stdout(path: str | Path) -> bool:
    """Whether a path stands for standard output: ``-``, ``/dev/stdout`` or another name of descriptor 1."""
    return Path(path) == STDOUT or _own_descriptor(Path(path)) == 1


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a file completely or not at all, making its folder; ``-`` is standard output.

    Raises:
        InputError: the place cannot be written.
        BrokenPipeError: whoever read standard output is gone.
    """
    path = Path(path)
    data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    if path == STDOUT:
        return _write_stdout(data)
    try:
        if (descriptor := _own_descriptor(path)) is not None:
            return _write_descriptor(descriptor, data)
        target, found = _target(path)
        if found is not None and not stat.S_ISREG(found.st_mode):
            return _write_through(target, data)
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, data, found)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and is_stdout(path):
            raise
        raise _refused(path, error) from None


def check_writable(*paths: str | Path | None) -> None:
    """Find out before a long run that its results could not be written; nothing is left behind.

    Raises:
        InputError: a path is a folder, or it or its folder cannot be made or written.
    """
    for path in (Path(path) for path in paths if path is not None):
        if path == STDOUT:
            if sys.stdout is None:
                raise InputError("-: cannot write (standard output is closed)")
            continue
        try:
            _check(path)
        except OSError as error:
            raise _refused(path, error) from None


def _refused(path: Path, error: OSError) -> InputError:
    if error.errno == errno.EISDIR:
        return InputError(f"{path}: expected a file to write, got a folder")
    return InputError(f"{path}: cannot write ({error.strerror or error})")


def _own_descriptor(path: Path) -> int | None:
    """The number of the descriptor of this process that a path names, by way of links or not."""
    name = os.path.abspath(path) if not path.is_absolute() else os.path.normpath(path)
    for _ in range(40):
        if name in _STANDARD:
            return _STANDARD[name]
        if found := _DESCRIPTOR.fullmatch(name):
            return None if name.split("/")[2] not in ("fd", "self", "thread-self", str(os.getpid())) else int(found[1])
        try:
            name = os.path.normpath(os.path.join(os.path.dirname(name), os.readlink(name)))
        except OSError:
            return None
    return None


def _target(path: Path) -> tuple[Path, os.stat_result | None]:
    """Where links lead, and what is there: None for nothing.

    Raises:
        OSError: links in a circle, a folder, or a place that may not be looked at.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return Path(os.path.realpath(path)), None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return Path(os.path.realpath(path)), found


def _check(path: Path) -> None:
    if (descriptor := _own_descriptor(path)) is not None:
        os.write(descriptor, b"")
        return
    target, found = _target(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        # Opening a FIFO would tell its reader that the result is over.
        return
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    try:
        descriptor, probe = _new_file(folder)
    except OSError as error:
        # A file that may be written in a folder that may not is written in place.
        if found is not None and error.errno in _IN_PLACE:
            return
        raise
    os.close(descriptor)
    probe.unlink(missing_ok=True)


def _new_file(folder: Path) -> tuple[int, Path]:
    """A new file in a folder, opened; its mode is that of any new file (umask)."""
    for number in _numbers:
        temporary = folder / f".llmsched-{os.getpid()}-{number}.tmp"
        with contextlib.suppress(FileExistsError):
            return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), temporary
    raise AssertionError("numbers do not end")


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:
            select.select((), (descriptor,), ())


def _replace(target: Path, data: bytes, found: os.stat_result | None) -> None:
    try:
        descriptor, temporary = _new_file(target.parent)
    except OSError as error:
        if found is None or error.errno not in _IN_PLACE:
            raise
        return _rewrite(target, data)
    try:
        _fill(descriptor, data, found)
        try:
            os.replace(temporary, target)
        except OSError as error:
            if found is None or error.errno not in _IN_PLACE:
                raise
            _rewrite(target, data)
    finally:
        temporary.unlink(missing_ok=True)


def _fill(descriptor: int, data: bytes, found: os.stat_result | None) -> None:
    """Write a new file to the disk, with the mode of the one that it replaces, and close it."""
    try:
        _write_all(descriptor, data)
        if found is not None:
            _keep_mode(descriptor, found)
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keep_mode(descriptor: int, found: os.stat_result) -> None:
    """Give a new file owner and mode of the one that it replaces, as far as this user may."""
    if hasattr(os, "fchown"):
        with contextlib.suppress(OSError):
            os.fchown(descriptor, found.st_uid, found.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(found.st_mode))


def _rewrite(target: Path, data: bytes) -> None:
    """Write a file in place; what was there comes back if there is no room for the new content."""
    with target.open("r+b", buffering=0) as file:
        before = file.read()
        try:
            file.seek(0)
            _write_all(file.fileno(), data)
            file.truncate(len(data))
        except BaseException:
            file.seek(0)
            _write_all(file.fileno(), before)
            file.truncate(len(before))
            raise


def _write_through(target: Path, data: bytes) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CLOEXEC | getattr(os, "O_NOCTTY", 0))
    try:
        _write_all(descriptor, data)
    finally:
        os.close(descriptor)


def _write_descriptor(descriptor: int, data: bytes) -> None:
    for stream in (sys.stdout, sys.stderr, *_result_streams):
        if stream is not None:
            stream.flush()
    _write_all(descriptor, data)


def _write_stdout(data: bytes) -> None:
    stream = _result_streams[-1] if _result_streams else sys.stdout
    if stream is None:
        raise InputError("-: cannot write (standard output is closed)")
    try:
        stream.flush()
        if (raw := getattr(stream, "buffer", None)) is not None:
            raw.write(data)
            raw.flush()
        else:
            stream.write(data.decode("utf-8", "replace"))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"-: cannot write ({error.strerror})") from None
