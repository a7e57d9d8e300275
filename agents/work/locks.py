"""Locks between processes: a file that names who has it; the lock itself is the system's and ends with the process."""

import contextlib
import errno
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from engine.errors import InputError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""How file systems say that they cannot lock."""

_WAIT_S = 0.05
"""How often a lock that may be waited for is tried."""


class _Held(NamedTuple):
    """A lock of this process."""

    descriptor: int
    thread: int
    times: int  # that the thread has it


_held: dict[Path, _Held] = {}
"""Locks of this process by the place of their file."""


@contextlib.contextmanager
def lock(path: Path, what: str, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold a lock file until the end; a thread that has it may take it again.

    Args:
        path: the lock file; it is there only while somebody has it.
        what: what it guards, for messages.
        wait_s: seconds to wait for another run that has it.

    Yields:
        Whether this thread did not have it already.

    Raises:
        InputError: another run has it (says which), or the file cannot be written.
    """
    place, thread = Path(os.path.realpath(path)), threading.get_ident()
    mine = _held.get(place)
    if mine is not None and mine.thread == thread:
        _held[place] = mine._replace(times=mine.times + 1)
    else:
        try:
            _held[place] = mine = _Held(_take(path, what, wait_s), thread, 1)
        except OSError as error:
            raise InputError(f"{what}: cannot write ({error.strerror})") from None
    try:
        yield _held[place].times == 1
    finally:
        if _held[place].times > 1:
            _held[place] = _held[place]._replace(times=_held[place].times - 1)
        else:
            del _held[place]
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            os.close(mine.descriptor)


def _take(path: Path, what: str, wait_s: float) -> int:
    """Open and lock a lock file; returns its descriptor."""
    deadline = time.monotonic() + wait_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{path}: expected a lock file, got something else")
            is_free = _flock(descriptor, what)
            if not is_free and time.monotonic() >= deadline:
                raise InputError(f"{what}: in use by {_owner(descriptor)}; wait for it or choose another place")
            # Whoever held it before has removed the file: then a lock on it guards nothing.
            if is_free and _same_file(path, found):
                _sign(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not is_free:
            time.sleep(_WAIT_S)


def _flock(descriptor: int, what: str) -> bool:
    """Lock a file; returns whether nobody else has."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"llmsched: {what}: this file system has no locks; start no second run there", file=sys.stderr)
    return True


def _same_file(path: Path, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), found)
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Note who has the lock, and since when."""
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S%z")}
    text = json.dumps(owner | {"command": " ".join(sys.argv)[:500]}) + "\n"
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())


def _owner(descriptor: int) -> str:
    try:
        data = json.loads(os.read(descriptor, 4096))
        return f"process {data['pid']} on {data['host']} since {data['since']} ({data['command']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another run"


def _leave_locks_to_the_parent() -> None:
    """A forked worker lets go of the descriptors: a lock must not outlive the run whose it is."""
    for held in _held.values():
        with contextlib.suppress(OSError):
            os.close(held.descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)
