"""Where compiled kernels are kept between processes.

Numba's own cache looks only at the file that holds a function, so a kernel that inlined code from another file would go
stale when that other file changes. The cache folder is therefore named after the contents of all sources of the
packages that hold kernels: any edit starts a fresh folder, the newest few and those in use stay. ``NUMBA_CACHE_DIR`` or
``XDG_CACHE_HOME`` choose the place.

Reading the cache runs code from it. So it is kept only in a folder ``llmsched`` that belongs to this user and to which
nobody else has access; where there can be none, in a new private folder that is removed at exit; else nowhere.
"""

import atexit
import contextlib
import errno
import functools
import hashlib
import multiprocessing
import os
import shutil
import stat
import sys
import tempfile
import warnings
from pathlib import Path

from numba.core.errors import NumbaExperimentalFeatureWarning

from engine.errors import CacheWarning

_PACKAGES = ("engine", "baselines", "llmsched_env", "agents")
_ROOT = Path(__file__).resolve().parents[2]
_KEEP = 4
_IN_USE = ".in-use"
"""File in a cache folder that every process which uses the folder has locked."""
own_folders: dict[str, Path] = {}
"""Folders for the code in the files of users (`engine.compiled.own_cache`)."""
_open_files: list[int] = []
_warned: list[str] = []

# Policies reach the compiled loops as first-class functions, so that one cached loop serves all of them; numba calls
# the feature experimental each time it is compiled.
warnings.filterwarnings("ignore", "First-class function type feature", NumbaExperimentalFeatureWarning)


def warn(folder: Path, error: OSError) -> None:
    """Say once in a run, and not in its workers, that compiled code cannot be kept; never an error."""
    if _warned or multiprocessing.parent_process() is not None:
        return
    text = (
        f"{folder}: compiled code cannot be kept there ({error.strerror or error}), so every run compiles it again; "
        "set NUMBA_CACHE_DIR or XDG_CACHE_HOME to a folder of yours with room"
    )
    _warned.append(text)
    try:
        # No name of a file: warnings would look for one and print a line of it.
        warnings.warn_explicit(text, CacheWarning, "<llmsched>", 1)
    except CacheWarning:
        # Warnings may be errors to somebody, but no cache is no reason to end a run.
        print(f"llmsched: {text}", file=sys.stderr)


@functools.cache
def place() -> Path | None:
    """The folder for compiled code; None if it can be kept nowhere."""
    base = Path("~/.cache/llmsched")
    try:
        base = _wanted()
        _make_private(base)
    except OSError as error:
        warn(base, error)
        return _temporary()
    return base if os.environ.get("NUMBA_CACHE_DIR") else _of_these_sources(base)


def _wanted() -> Path:
    """The folder that the environment asks for.

    Raises:
        OSError: there is no home.
    """
    if chosen := os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME"):
        return Path(os.path.abspath(chosen)) / "llmsched"
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise OSError(errno.ENOENT, "there is no home folder: HOME is not set, and this user is not in passwd")
    return Path(home) / ".cache" / "llmsched"


def is_ours(found: os.stat_result) -> bool:
    """Whether a file or folder belongs to this user."""
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def _make_private(base: Path) -> None:
    """Make a folder that only this user can look into, or make sure that it is one and can be written.

    Raises:
        OSError: it is something else, somebody else's, or cannot be written.
    """
    base.mkdir(parents=True, exist_ok=True)
    for found in (os.lstat(base), os.stat(base)):
        if not is_ours(found):
            raise PermissionError(errno.EPERM, "it belongs to another user")
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if stat.S_IMODE(found.st_mode) != 0o700:
        base.chmod(0o700)
    tempfile.TemporaryFile(dir=base).close()


def _temporary() -> Path | None:
    """A new private folder, removed at exit; worker processes are told of it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="llmsched-"))
    except OSError:
        return None
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    return folder / "llmsched"


def _source_digest() -> str:
    digest = hashlib.sha256(f"{sys.version}{os.name}".encode())
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _of_these_sources(base: Path) -> Path:
    folder = base / _source_digest()
    is_new = not folder.exists()
    with contextlib.suppress(OSError, ImportError):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)
        os.utime(folder)
        # For as long as this process lives.
        _open_files.append(_lock(folder, exclusive=False))
    if is_new:
        _forget_old(base, folder.name)
    return folder


def _lock(folder: Path, exclusive: bool) -> int:
    """Lock a cache folder; returns the descriptor that holds the lock.

    Raises:
        OSError: others use it, or the file system has no locks.
    """
    import fcntl

    descriptor = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _forget_old(base: Path, current: str) -> None:
    """Remove all but the newest few folders; one that a living process uses stays."""
    with contextlib.suppress(OSError):
        folders = [path for path in base.iterdir() if path.is_dir() and path.name != current]
        for folder in sorted(folders, key=lambda path: path.stat().st_mtime)[: -(_KEEP - 1)]:
            with contextlib.suppress(OSError, ImportError):
                descriptor = _lock(folder, exclusive=True)
                gone = folder.rename(base / f".old-{os.getpid()}-{folder.name}")
                shutil.rmtree(gone, ignore_errors=True)
                os.close(descriptor)
