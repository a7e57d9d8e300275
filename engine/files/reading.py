"""The one place where files of people are opened: text and JSON (`yaml_text`: YAML; `lines`: csv, jsonl).

Whatever the file is, a reader returns or raises `InputError` with one line, and never waits: only regular files are
opened (no pipe, device, socket or folder), each kind has a largest size, and text must be UTF-8 (a byte order mark is
taken off). JSON is strict: no NaN and no infinity, written or by overflow, no key twice, no number of hundreds of
digits, no nesting beyond `MAX_DEPTH`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from engine.errors import InputError

MIB = 2**20
SMALL, LARGE, TRACE = 16 * MIB, 1024 * MIB, 4096 * MIB
"""Largest sizes in bytes: settings, profiles, tables; whole results and conversations in JSON; traces read by line."""
MAX_DEPTH = 64
"""Brackets inside each other in JSON and YAML."""
MAX_DIGITS = 300
"""Digits of one number; no float holds more."""

_KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}
_MAGIC = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a parquet file",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}
_LONG_NUMBER = re.compile(rf"\d{{{MAX_DIGITS}}}|[eE][+]?\d{{3}}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def is_there(path: str | Path) -> bool:
    """Whether there is something at a path; what cannot be a path is not there."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a name that is too long, a NUL byte, a loop of links
        return False


def open_file(path: str | Path, what: str, limit: int = SMALL) -> io.BufferedReader:
    """Open a regular file for reading bytes, without ever waiting for one that is not.

    Args:
        path: the file; links are followed.
        what: what it should hold, for messages ("a profile").
        limit: largest size in bytes.

    Raises:
        InputError: it cannot be read, is not a regular file, or is larger.
    """
    try:
        _check_kind(path, what)
        # Between the two calls the file may have become a pipe: that must not wait for a writer either.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise InputError(f"{path}: cannot read {what} ({error.strerror or error})") from None
    except InputError:
        raise
    except ValueError:  # a NUL byte or a lone surrogate in the path
        raise InputError(f"{str(path)!r}: cannot read {what} (not the name of a file)") from None
    file = os.fdopen(number, "rb")
    status = os.fstat(number)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        file.close()
        too_large(path, what, limit, status.st_size)
    return file


def _check_kind(path: str | Path, what: str) -> None:
    """Refuse what is there under a name but is no regular file.

    Raises:
        OSError: nothing is there, or it may not be looked at.
    """
    mode = os.stat(path).st_mode
    kind = next((name for test, name in _KINDS.items() if test(mode)), None)
    if kind is not None:
        raise InputError(f"{path}: expected a regular file with {what}, got {kind}")


def too_large(path: str | Path, what: str, limit: int, size: int) -> NoReturn:
    """Refuse a file for its size in bytes."""
    raise InputError(f"{path}: expected {what} of at most {limit // MIB} MiB, got {size / MIB:.1f} MiB or more")


def read_bytes(path: str | Path, what: str, limit: int = SMALL) -> bytes:
    """The bytes of a regular file.

    Raises:
        InputError: as `open_file`; also a file that goes on after its stated size (those of /proc).
    """
    with open_file(path, what, limit) as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot read {what} ({error.strerror})") from None
        except (MemoryError, OverflowError):
            raise InputError(f"{path}: {what} does not fit this machine's memory") from None
    if data is None:  # a file that would have made us wait
        raise InputError(f"{path}: expected a regular file with {what}, got one that has nothing to read yet")
    if len(data) > limit:
        too_large(path, what, limit, len(data))
    return data


def file_digest(path: str | Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a file, computed once until it changes.

    Raises:
        InputError: as `open_file`.
    """
    with open_file(path, "a file", TRACE) as file:
        status = os.fstat(file.fileno())
    return _digest(str(path), (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=8)
def _digest(path: str, version: tuple[int, ...]) -> str:
    with open_file(path, "a file", TRACE) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_text(path: str | Path, what: str, limit: int = SMALL) -> str:
    """The text of a regular file in UTF-8, without a byte order mark.

    Raises:
        InputError: as `open_file`; another encoding, or a binary file.
    """
    return decode(read_bytes(path, what, limit), path, what)


def decode(data: bytes, where: str | Path, what: str) -> str:
    """Bytes as the UTF-8 text that they should be.

    Raises:
        InputError: another encoding, or binary data.
    """
    check_magic(data[:8], where, what)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}, line {line}: expected UTF-8 text, got byte 0x{data[error.start]:02x}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{where}, line {line}: expected {what} as text, got a NUL character (a binary file?)")
    return text


def check_magic(start: bytes, where: str | Path, what: str) -> None:
    """Refuse a well-known binary format by the first bytes of a file."""
    found = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
    if found is not None:
        hint = " (convert it: iconv -f utf-16 -t utf-8)" if found == "UTF-16" else " (unpack it first)"
        raise InputError(f"{where}: expected {what} as UTF-8 text, got {found}{hint}")


def parse_json(text: str, where: str | Path) -> Any:
    """The value of a JSON text.

    Args:
        text: the text.
        where: file, or file and line, for messages.

    Returns:
        Dictionaries, lists, strings, numbers (all finite), booleans, None; at most `MAX_DEPTH` deep.

    Raises:
        InputError: not strict JSON; says where.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"{where}: expected each key once, got {twice[:60]!r} twice")
        return found

    def constant(name: str) -> NoReturn:
        raise InputError(f"{where}: expected finite numbers, got {name}")

    hooks: dict[str, Any] = {"object_pairs_hook": once, "parse_constant": constant}
    if _LONG_NUMBER.search(text):
        hooks |= {"parse_int": lambda t: _whole(t, where), "parse_float": lambda t: _float(t, where)}
    try:
        data = json.loads(text, **hooks)
    except json.JSONDecodeError as error:
        got = "nothing" if not text.strip() else f"something else ({error.msg}, line {error.lineno})"
        raise InputError(f"{where}: expected JSON, got {got}") from None
    except RecursionError:
        raise InputError(f"{where}: expected at most {MAX_DEPTH} brackets inside each other, got more") from None
    except MemoryError:
        raise InputError(f"{where}: does not fit this machine's memory") from None
    check_depth(data, where, text.count("[") + text.count("{"))
    if _SURROGATE.search(text):
        _check_surrogates(data, where)
    return data


def _whole(text: str, where: str | Path) -> int:
    if len(text) > MAX_DIGITS:
        raise InputError(f"{where}: expected numbers of at most {MAX_DIGITS} digits, got one of {len(text)}")
    return int(text)


def _float(text: str, where: str | Path) -> float:
    value = float(text)
    if len(text) > MAX_DIGITS or value in (float("inf"), float("-inf")):
        raise InputError(f"{where}: expected finite numbers, got {text[:20]!r}")
    return value


def check_depth(data: object, where: str | Path, brackets: int = MAX_DEPTH + 1) -> None:
    """Check that parsed data are not nested beyond `MAX_DEPTH`.

    Args:
        data: dictionaries and lists.
        where: for messages.
        brackets: opening brackets in the text; that many at most are inside each other.

    Raises:
        InputError: they are.
    """
    if brackets <= MAX_DEPTH:
        return
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [inner for item in level for inner in _inside(item)]
        if not level:
            return
    raise InputError(f"{where}: expected at most {MAX_DEPTH} brackets inside each other, got more")


def _inside(item: object) -> list[Any]:
    """The dictionaries and lists that lie directly in one."""
    parts = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return [part for part in parts if isinstance(part, dict | list)]


def _check_surrogates(data: object, where: str | Path) -> None:
    """Half a surrogate pair can be written as an escape, but no output can print it."""
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: expected text, got half of a surrogate pair (\\ud800 to \\udfff)") from None


def read_json(path: str | Path, what: str, limit: int = SMALL) -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        what: what it should hold, for messages ("a profile").
        limit: largest size in bytes.

    Raises:
        InputError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, what, limit), path)


def read_mapping(path: str | Path, what: str, limit: int = SMALL) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: as `read_json`; or the file holds no object.
    """
    data = read_json(path, what, limit)
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected {what} as a JSON object, got {kind_of(data)}")
    return data


def kind_of(value: object) -> str:
    """What a value is, in a few words for messages; long values are cut."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a whole number of more than 30 digits"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
