"""The file of a checkpoint: a safetensors archive whose every name, type, shape and size is checked before it is used.

Arrays stand under their names, those of the environment compressed (zlib); one JSON text has everything else.
"""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError
from engine.files.reading import LARGE, open_file, read_bytes

FORMAT = "llmsched-checkpoint/2"
ENVIRONMENT = "environment."
"""How the names of the environment's arrays begin."""
ROOM = 1 << 20
"""Bytes of a file beside its arrays: names, generators, the last episodes."""
_MOST = 1 << 53


class DamagedCheckpoint(InputError):
    """A file that is no whole checkpoint of this run; an older one may be."""


def compressed(array: np.ndarray) -> np.ndarray:
    """The bytes of an array as a zlib stream, uint8[n]."""
    return np.frombuffer(zlib.compress(np.ascontiguousarray(array).tobytes(), 1), np.uint8)


def digest(arrays: dict[str, np.ndarray], about: str) -> str:
    """SHA-256 of what a file holds: one changed bit of a weight would train on to another result."""
    total = hashlib.sha256(about.encode())
    for name in sorted(arrays):
        total.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        total.update(arrays[name].tobytes())
    return total.hexdigest()


def check_configuration(path: Path, config_hash: str) -> None:
    """Look whether a checkpoint belongs to this configuration before a model is built; damaged ones pass.

    Raises:
        InputError: it belongs to another one.
    """
    try:
        with open_file(path, "a checkpoint", LARGE) as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, 2 * ROOM)))["__metadata__"]
        got = json.loads(header["about"])["config_hash"]
    except Exception:  # damaged: `load_checkpoint` says how
        return
    check_hash(path, got, config_hash)


def check_hash(path: Path, got: object, config_hash: str) -> None:
    """Check whose checkpoint it is.

    Raises:
        InputError: that of another configuration.
    """
    if got != config_hash:
        raise InputError(f"{path}: belongs to a run of another configuration ({got!r}, this one is {config_hash!r})")


def read(path: Path, limit: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the JSON part of a file of at most `limit` bytes.

    Raises:
        DamagedCheckpoint: the file is something else.
    """
    from safetensors.numpy import load

    try:
        data = read_bytes(path, "a checkpoint", limit)
    except InputError as error:
        raise DamagedCheckpoint(str(error)) from None
    try:
        arrays = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        known, about = header["format"] == FORMAT, json.loads(header["about"])
    except Exception as error:  # foreign data: safetensors alone has a dozen kinds of errors
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedCheckpoint(f"{path}: expected a checkpoint, damaged or foreign ({reason[:80]})") from None
    if not known or not isinstance(about, dict):
        raise DamagedCheckpoint(f"{path}: expected a checkpoint with format {FORMAT!r}")
    if "sha256" in header and header["sha256"] != digest(arrays, header["about"]):
        raise DamagedCheckpoint(f"{path}: damaged (its content is not what was written)")
    return arrays, about


def check_arrays(
    given: dict[str, np.ndarray], expected: dict[str, np.ndarray], moments: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays of a file, those of the environment decompressed, all of the expected types and shapes.

    Raises:
        InputError: another name, type or shape, or a number that is not finite.
    """
    moved = {name.partition(".")[0] for name in moments if name in given}
    expected = expected | {name: like for name, like in moments.items() if name.partition(".")[0] in moved}
    if set(given) != set(expected):
        other = sorted(set(given) ^ set(expected))[0]
        raise InputError(f"checkpoint: {'unknown' if other in given else 'missing'} array {other[:80]!r}")
    return {name: _checked(given[name], like, name) for name, like in expected.items()}


def _checked(array: np.ndarray, like: np.ndarray, name: str) -> np.ndarray:
    """An array of a file as it was before it was written.

    Raises:
        InputError: of another type or shape, or a number of it is not finite.
    """
    if name.startswith(ENVIRONMENT):
        return _decompressed(array, like, name)
    if array.dtype != like.dtype or array.shape != like.shape:
        raise InputError(f"checkpoint: {name}: expected {like.dtype}{list(like.shape)}, got {_kind(array)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"checkpoint: {name}: expected finite numbers")
    return array


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _decompressed(data: np.ndarray, like: np.ndarray, name: str) -> np.ndarray:
    if data.dtype != np.uint8 or data.ndim != 1:
        raise InputError(f"checkpoint: {name}: expected bytes, got {_kind(data)}")
    stream = zlib.decompressobj()
    # One byte more than there should be shows a stream that goes on, without ever holding it.
    values = stream.decompress(data.tobytes(), like.nbytes + 1)
    if len(values) != like.nbytes or not stream.eof:
        raise InputError(f"checkpoint: {name}: expected {_kind(like)}, got another number of bytes")
    return np.frombuffer(values, like.dtype).reshape(like.shape)


def mapping_of(about: dict[str, Any], key: str) -> dict[str, Any]:
    """A mapping of the JSON part.

    Raises:
        InputError: it is something else.
    """
    value = about.get(key)
    if not isinstance(value, dict):
        raise InputError(f"checkpoint: {key}: expected a mapping")
    return value


def count_of(about: dict[str, Any], key: str) -> int:
    """A whole number >= 0 of the JSON part.

    Raises:
        InputError: it is something else.
    """
    value = about.get(key)
    if type(value) is not int or not 0 <= value < _MOST:
        raise InputError(f"checkpoint: {key}: expected a whole number >= 0, got {str(value)[:40]!r}")
    return value


def episodes_of(about: dict[str, Any]) -> list[dict[str, Any]]:
    """The latest episodes as SB3 keeps them.

    Raises:
        InputError: they are something else.
    """
    found = about.get("episodes")
    if not isinstance(found, list) or len(found) > 10_000:
        raise InputError("checkpoint: episodes: expected a list of episodes")
    for episode in found:
        numbers = isinstance(episode, dict) and all(type(v) in (int, float) for v in episode.values())
        if not numbers or not {"r", "l", "t"} <= set(episode):
            raise InputError("checkpoint: episodes: expected numbers r, l and t in each")
    return found
