"""Results on disk: files that are whole or not there, and folders that belong to one run at a time.

A folder of results carries a mark, ``.llmsched``, which says what made it: only an empty folder or one with the right
mark is written into, so that nobody's other files are replaced or removed. While a run writes into a folder it holds a
lock, ``.llmsched.lock``, that names the run and ends with its process.
"""

import contextlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from agents.work.locks import lock
from agents.work.provenance import config_hash
from agents.work.records import as_json
from engine.errors import InputError
from engine.files.reading import read_mapping
from engine.files.writing import STDOUT, TEMPORARY, check_writable, is_stdout, text_to_stderr, write_atomically

__all__ = [
    "MARK",
    "STDOUT",
    "check_apart",
    "check_writable",
    "claimed",
    "empty_folder",
    "is_ours",
    "is_stdout",
    "json_text",
    "locked",
    "new_folder",
    "replace_folder",
    "text_to_stderr",
    "write_atomically",
]

MARK, LOCK = ".llmsched", ".llmsched.lock"
FORMAT = "llmsched-folder/1"


def json_text(result: object) -> str:
    """A result, plain data or records, as strict JSON, as all commands write it."""
    return json.dumps(as_json(result), indent=1, allow_nan=False) + "\n"


def write_json(path: Path | None, result: object) -> None:
    """Write a result as JSON, complete or not at all; nowhere without a path.

    Raises:
        InputError: the place cannot be written.
    """
    if path is not None:
        write_atomically(path, json_text(result))


def is_ours(folder: Path, *kinds: str) -> bool:
    """Whether a folder carries the mark of one of these kinds of run (none: of any)."""
    kind = _kind_of(folder)
    return kind is not None and (not kinds or kind in kinds)


def _kind_of(folder: Path) -> str | None:
    """The kind of run whose mark a folder carries; None without a mark, or with something else in its place."""
    try:
        data = read_mapping(Path(folder) / MARK, "a mark")
    except InputError:
        return None
    kind = data.get("kind")
    return kind if data.get("format") == FORMAT and isinstance(kind, str) else None


@contextlib.contextmanager
def claimed(folder: Path, *kinds: str) -> Iterator[Path]:
    """Have a folder of results to oneself: made and marked if need be, and locked until the end.

    The same thread may claim a folder again inside. A folder that was made and into which nothing was written is taken
    away again.

    Args:
        folder: the folder.
        kinds: kinds of run whose folders will do, such as "evaluate"; a new one is marked with the first.

    Raises:
        InputError: the folder holds something else, is in use by another run (says which), or cannot be written.
    """
    folder = Path(folder)
    try:
        made = _make(folder)
        _check_content(folder, kinds)
    except OSError as error:
        raise _refused(folder, error) from None
    with lock(folder / LOCK, str(folder)) as first:
        try:
            if first:
                _prepare(folder, kinds)
            yield folder
        finally:
            if made:
                _remove_if_unused(folder)


def _refused(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot write ({error.strerror or error})")


def _prepare(folder: Path, kinds: tuple[str, ...]) -> None:
    """Mark a folder that is locked, and delete what killed runs were writing: nobody else writes here now."""
    try:
        _check_content(folder, kinds)
        for path in [*folder.rglob(TEMPORARY)]:
            _remove(path)
    except OSError as error:
        raise _refused(folder, error) from None
    if not is_ours(folder):
        write_json(folder / MARK, {"format": FORMAT, "kind": kinds[0]})


@contextlib.contextmanager
def locked(path: Path, wait_s: float = 0.0) -> Iterator[Path]:
    """Have one file to oneself, by a lock file beside it.

    Args:
        path: the file.
        wait_s: seconds to wait for another run that has it.

    Raises:
        InputError: another run has it (says which), or its folder cannot be written.
    """
    path = Path(os.path.realpath(path))
    name = path.name if len(os.fsencode(path.name)) < 200 else config_hash({"name": path.name})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(path, error) from None
    with lock(path.with_name(f".{name}{LOCK}"), str(path), wait_s):
        yield path


def check_apart(named: Mapping[str, object]) -> None:
    """Refuse one file for two purposes, such as a result in place of the trace that it is made from.

    Args:
        named: paths (or anything else) by the names of the options; folders and other values may be the same.

    Raises:
        InputError: two of them are the same file.
    """
    seen: dict[str, str] = {}
    for name, value in named.items():
        place = _file_of(value)
        if place in seen:
            raise InputError(f"{seen[place]}, {name}: expected two files, got {value} for both")
        if place is not None:
            seen[place] = name


def _file_of(value: object) -> str | None:
    """The file that the value of an option names, as one name for each file; None for folders and other values."""
    if isinstance(value, str):
        return os.path.realpath(value) if os.path.isfile(value) else None
    if not isinstance(value, Path):
        return None
    if is_stdout(value):
        return str(STDOUT)
    return os.path.realpath(value) if os.path.isfile(value) or not os.path.exists(value) else None


def empty_folder(folder: Path, *kinds: str) -> None:
    """Remove everything in a folder of ours, if there is one.

    Raises:
        InputError: it holds something else, or another run is using it.
    """
    if not os.path.lexists(folder):
        return
    with claimed(folder, *kinds) as place:
        for path in place.iterdir():
            if path.name not in (MARK, LOCK):
                _remove(path)


def new_folder(beside: Path) -> Path:
    """A new folder with a temporary name beside another, which it is to replace."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".llmsched-", suffix=".tmp", dir=beside.parent))
    folder.chmod(0o755)
    return folder


def replace_folder(new: Path, folder: Path) -> None:
    """Put a new folder in the place of another, if there is one: on Linux at once, so that a kill leaves one of both.

    Raises:
        OSError: the place cannot be written.
    """
    if os.path.lexists(folder) and not _exchange(new, folder):
        os.replace(folder, new.with_name(f"{new.name.removesuffix('.tmp')}-old.tmp"))
    if os.path.lexists(folder):
        return _remove(new)
    os.replace(new, folder)
    shutil.rmtree(new.with_name(f"{new.name.removesuffix('.tmp')}-old.tmp"), ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names; False where the system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0)


def _remove(path: Path) -> None:
    """Remove a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _make(folder: Path) -> bool:
    """Make a folder; returns whether it was not there."""
    if folder == STDOUT:
        raise InputError("-: expected a folder, got standard output")
    try:
        if stat.S_ISDIR(os.stat(folder).st_mode):
            return False
        raise InputError(f"{folder}: expected a folder, got a file")
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True)
    return True


def _check_content(folder: Path, kinds: tuple[str, ...]) -> None:
    """Refuse a folder that holds anything that no run of these kinds has made."""
    if is_ours(folder, *kinds):
        return
    if (kind := _kind_of(folder)) is not None:
        raise InputError(f"{folder}: expected a new folder or one of `llmsched {kinds[0]}`, got one of {kind!r}")
    names = (path.name for path in folder.iterdir())
    if others := sorted(name for name in names if name != LOCK and not fnmatch(name, TEMPORARY)):
        raise InputError(
            f"{folder}: expected a new or empty folder or one of `llmsched {kinds[0]}` (with {MARK} in it), "
            f"got one that holds {others[0]!r}"
        )


def _remove_if_unused(folder: Path) -> None:
    with contextlib.suppress(OSError):
        if {path.name for path in folder.iterdir()} <= {MARK, LOCK}:
            (folder / MARK).unlink(missing_ok=True)
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
