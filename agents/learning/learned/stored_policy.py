"""The two files of a trained policy, which can be read without running any code from them.

    weights.safetensors   float64 `codec.<name>`, `mean`, `std`; float32 `layer_<k>.weight` [out, in], `layer_<k>.bias`
    policy.json           format, spaces, network, clip, environment (with the length table of a user's file), versions,
                          training command, hashes

What depends on the version stands by name: the entries of the observation that the network sees, and the parameters of
the action's codec (what the policy knew about its device in training; `old_codec` names those of the first format). So
an entry or a parameter that comes later leaves what is stored as it is.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from agents.learning.learned.layers import MAX_LAYERS, MAX_WIDTH
from agents.learning.learned.old_codec import named_codec
from agents.work.files import new_folder, replace_folder
from engine.errors import InputError
from engine.fields import convert
from engine.files.reading import kind_of, read_bytes, read_json
from llmsched_env.observation import OBSERVATION_NAMES

FORMAT, FIRST_FORMAT = "llmsched-policy/2", "llmsched-policy/1"
WEIGHTS_FILE, POLICY_FILE = "weights.safetensors", "policy.json"
CODEC = "codec."
"""How the names of the codec's parameters begin."""
MOST_OBSERVATIONS = 1 << 16
"""Numbers that an observation function of a user may make of a server."""

_KEYS = frozenset(
    "observation action network clip sampled env versions command timesteps sources weights_sha256".split()
)
_OPTIONAL = frozenset({"length_table"})
_HEADER = 1 << 20
"""Largest part of the weights file beside network and normalisation, bytes."""

Tensors = dict[str, np.ndarray]


def own_names(size: int) -> tuple[str, ...]:
    """What stands for the names of the observation where a function of the user makes it."""
    return tuple(f"own_{k}" for k in range(size))


def write_policy(folder: Path, about: dict[str, Any], tensors: Tensors, kind: str = FORMAT) -> None:
    """Write the files; an older policy in this place is replaced at once, never half.

    Args:
        folder: where they go.
        about: what policy.json has, without format and hash.
        tensors: all arrays by their names.
        kind: the format.

    Raises:
        InputError: the folder holds something else than a policy.
        OSError: the place cannot be written.
    """
    from safetensors.numpy import save

    if folder.exists() and not (folder / POLICY_FILE).exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: expected a new or empty folder or an older bundle to replace")
    weights = save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    about = {"format": kind, **about, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    new = new_folder(folder)
    try:
        (new / WEIGHTS_FILE).write_bytes(weights)
        (new / POLICY_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        replace_folder(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def read_policy(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """The files of a policy, of this format or the first one.

    Returns:
        What policy.json has, its observation, widths and mappings checked; the arrays by their names.

    Raises:
        InputError: files are missing or damaged, or of another format.
    """
    about, where = _read_about(folder / POLICY_FILE), folder / WEIGHTS_FILE
    widths = about["network"]["widths"]
    tensors = _read_tensors(where, about["weights_sha256"], _bytes(len(about["observation"]), widths) + _HEADER)
    is_first = about["format"] == FIRST_FORMAT
    codec = {"codec"} if is_first else {name for name in tensors if name.startswith(CODEC)}
    _check_names(tensors, len(widths), codec, where)
    if is_first:
        tensors |= _named(tensors.pop("codec"), about["env"], where)
    return about, tensors


def read_network(folder: Path, kind: str, keys: frozenset[str], inputs: str) -> tuple[dict[str, Any], Tensors]:
    """The files of what is a network and nothing else, as `write_policy` writes them.

    Args:
        folder: where they are.
        kind: the format.
        keys: what policy.json has, without format and hash.
        inputs: the key under which the names of the inputs stand.

    Returns:
        What policy.json has, its network and the kind of the inputs' names checked; the arrays by their names.

    Raises:
        InputError: files are missing or damaged, or of another format.
    """
    path, where = folder / POLICY_FILE, folder / WEIGHTS_FILE
    about = _read_mapping(path, (kind,), keys | {"weights_sha256"}, frozenset())
    widths = _check_network(about["network"], path)
    names = convert(about[inputs], list[str], f"{path}: {inputs}")
    tensors = _read_tensors(where, about["weights_sha256"], _bytes(len(names), widths) + _HEADER)
    _check_names(tensors, len(widths), set(), where)
    return about, tensors


def _check_names(tensors: Tensors, layers: int, further: set[str], where: Path) -> None:
    """Whether the arrays are those of a network with so many layers, and these further ones."""
    names = {"mean", "std", *(f"layer_{k}.{part}" for k in range(layers) for part in ("weight", "bias")), *further}
    if set(tensors) != names:
        raise InputError(f"{where}: expected tensors {sorted(names)}, got {sorted(tensors)}")


def _named(codec: np.ndarray, env: dict[str, Any], where: Path) -> Tensors:
    """The codec of a policy of the first format by the names that it has now."""
    try:
        named = named_codec(codec, env)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return {CODEC + name: array for name, array in named.items()}


def _bytes(observations: int, widths: list[int]) -> int:
    """Size of all numbers of a network with these layers, normalisation included."""
    inputs = [observations, *widths]
    return 16 * observations + 4 * sum((n + 1) * m for n, m in zip(inputs, widths, strict=False))


def _read_mapping(path: Path, formats: tuple[str, ...], keys: frozenset[str], optional: frozenset[str]) -> Any:
    """What is in policy.json, its format and keys checked."""
    about = read_json(path, "a policy bundle")
    if not isinstance(about, dict) or about.get("format") not in formats:
        raise InputError(f"{path}: expected a policy bundle with format {' or '.join(map(repr, formats))}")
    if strange := sorted((set(about) - optional - {"format"}) ^ keys):
        raise InputError(f"{path}: {'unknown' if strange[0] in about else 'missing'} key {strange[0]!r}")
    return about


def _read_about(path: Path) -> dict[str, Any]:
    about: dict[str, Any] = _read_mapping(path, (FORMAT, FIRST_FORMAT), _KEYS, _OPTIONAL)
    for key in ("action", "env"):
        if not isinstance(about[key], dict):
            raise InputError(f"{path}: action, env: expected mappings, got {key} {kind_of(about[key])}")
    _check_network(about["network"], path)
    _check_observation(about["observation"], bool(about["env"].get("observation")), path)
    return about


def _check_network(network: object, path: Path) -> list[int]:
    """Check the description of a network; returns the widths of its layers."""
    if not isinstance(network, dict) or set(network) != {"widths", "activation"}:
        raise InputError(f"{path}: network: expected widths and activation")
    widths = convert(network["widths"], list[int], f"{path}: network.widths")
    if not 1 <= len(widths) <= MAX_LAYERS or not all(1 <= width <= MAX_WIDTH for width in widths):
        raise InputError(f"{path}: network.widths: expected 1 to {MAX_LAYERS} numbers from 1 to {MAX_WIDTH}")
    return widths


def _check_observation(names: Any, is_own: bool, path: Path) -> None:
    """Every entry that the network sees must be there: names of this version, in any order, or of a user's function."""
    names = convert(names, list[str], f"{path}: observation")
    if len(names) > MOST_OBSERVATIONS:
        raise InputError(f"{path}: observation: expected at most {MOST_OBSERVATIONS} names, got {len(names)}")
    known = own_names(len(names)) if is_own else OBSERVATION_NAMES
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"{path}: made for another observation than that of this version, with {unknown[0][:80]!r}")


def _read_tensors(path: Path, sha256: object, limit: int) -> Tensors:
    from safetensors.numpy import load

    data = read_bytes(path, "weights", limit)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{path}: damaged, or not the weights of this policy.json (hash differs)")
    try:
        tensors: Tensors = load(data)
    except Exception as error:  # foreign data: safetensors alone has a dozen kinds of errors
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: expected safetensors, {reason[:120]}") from None
    for name, array in tensors.items():
        expected = np.float32 if name.startswith("layer_") else np.float64
        if array.dtype != expected:
            raise InputError(f"{path}: {name}: expected {np.dtype(expected)}, got {array.dtype}")
    return tensors
