"""Rewards and observations of users: numpy functions over the rows, named ``module:function`` or ``FILE.py:function``.

A reward function gets a `Step` and returns one finite number for each row; it takes the place of the weighted sum. An
observation function gets a `Seen` and returns finite numbers [rows, m], which take the place of the observation; m is
what it returns for servers where nothing has happened yet. Arrays are read-only and live: copy what must stay. A row
must depend on nothing but its own entries (elementwise operations, sums along a row), so that the single environment
and every row of a vector get the same bits, and on no state, so that stored ones can be gone on from.

    def reward(step):                     # minus the request-seconds without a first token, a penalty on late gaps
        return step.terms[:, 0] + 3.0 * step.terms[:, 1]

    def observe(seen):                    # KV use, waiting and running requests
        row = seen.row
        return np.stack([1 - row["free_blocks"] / row["num_blocks"].clip(1), row["num_waiting"], row["num_running"]], 1)
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from engine.errors import InputError
from engine.fields import from_mapping
from engine.files.reading import kind_of
from engine.own_code import blame, file_place, load_module, load_object, own_objects, parse_place, source_digest
from engine.server.state import View
from llmsched_env.reward import RewardWeights


class Seen(NamedTuple):
    """What an observation function is given."""

    observation: np.ndarray  # float32[rows, OBSERVATION_SIZE], the default observation
    request: np.ndarray  # REQUEST[rows, requests], see `engine.server.state`; only those that arrived count
    queue: np.ndarray  # int32[rows, requests]; queue[e, : row["num_waiting"][e]] wait in row e, head first
    running: np.ndarray  # int32[rows, requests]; running[e, : row["num_running"][e]] hold KV
    row: np.ndarray  # ROW[rows], clock, counters and limits of the servers


class Step(NamedTuple):
    """What a reward function is given after a step."""

    terms: np.ndarray  # float64[rows, terms], unweighted, in the order of REWARD_TERMS
    elapsed_s: np.ndarray  # float64[rows], seconds that the step covered
    reward: np.ndarray  # float64[rows], the weighted sum of the terms
    terminated: np.ndarray  # bool[rows]
    truncated: np.ndarray  # bool[rows]
    seen: Seen  # the servers after the step


def read_reward(value: object, where: str) -> RewardWeights:
    """The reward of a configuration: weights, a mapping of them, or a function (its name or itself).

    Raises:
        InputError: none of these.
    """
    if isinstance(value, RewardWeights):
        return value
    if isinstance(value, Mapping):
        return from_mapping(RewardWeights, value, where)
    return RewardWeights(function=place_of(value, where))


def place_of(value: Any, where: str) -> str:
    """The name under which a function can be found again; a name is kept.

    Raises:
        InputError: no function, or one that has no name in a module or file.
    """
    if isinstance(value, str):
        return value
    if not callable(value) or not hasattr(value, "__qualname__"):
        raise InputError(f"{where}: expected module:function, FILE.py:function or a function, got {kind_of(value)}")
    place = file_place(value) or f"{value.__module__}:{value.__qualname__}"
    if value.__module__ == "__main__" or parse_place(place) is None:
        raise InputError(f"{where}: expected a function at the top of a module or file of its own, got {place}")
    return place


class OwnFunction:
    """A function of a user, checked whenever it is called."""

    def __init__(self, spec: str, sha256: str, where: str) -> None:
        """Find the function.

        Args:
            spec: ``module:function`` or ``FILE.py:function``.
            sha256: digest that its source must have ("": any).
            where: what a message calls it.

        Raises:
            InputError: there is none, or its source is not the one that is expected.
        """
        self.spec, self.where = spec, f"{where}: {spec}"
        place = parse_place(spec)
        if place is None or place.settings:
            raise InputError(f"{where}: expected module:function or FILE.py:function, got {spec!r}")
        found = [load_object(place)] if place.name else list(own_objects(load_module(place.place)).values())
        if len(found) != 1 or not callable(found[0]) or isinstance(found[0], type):
            got = "several" if len(found) > 1 else "none" if not found else kind_of(found[0])
            raise InputError(f"{self.where}: expected the name of a function, got {got}")
        self.function: Callable[[Any], Any] = found[0]
        self.sha256 = source_digest(self.function)
        if sha256 not in ("", self.sha256):
            raise InputError(f"{self.where}: expected the source with hash {sha256}, got {self.sha256}: it was edited")

    def __call__(self, given: object, shape: tuple[int | None, ...], dtype: Any, finite: bool = True) -> np.ndarray:
        """What the function returns, as an array of this shape (None: any size) and type.

        Raises:
            InputError: it raised something, or returned something else.
        """
        try:
            with np.errstate(all="ignore"):  # what is not finite is found below
                found = np.asarray(self.function(given))
        except (Exception, SystemExit) as error:
            raise InputError(f"{self.where}: {blame(error)}") from error
        fits = found.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, found.shape, strict=True))
        if not fits or found.dtype.kind not in "biuf":
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise InputError(f"{self.where}: expected numbers of shape ({wanted}), got {found.dtype} {found.shape}")
        with np.errstate(all="ignore"):
            found = found.astype(dtype)
        if finite and not np.isfinite(found).all():
            row = int(np.argwhere(~np.isfinite(found))[0][0])
            raise InputError(f"{self.where}: expected finite numbers, got {found[row]} in row {row}")
        return found


def sealed(array: np.ndarray) -> np.ndarray:
    """A view of an array that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


def seen_by(observation: np.ndarray, visible: View) -> Seen:
    """The arrays of all rows as an observation function gets them."""
    counters = visible.row.reshape(-1)
    return Seen(*map(sealed, (observation, visible.request, visible.queue, visible.running, counters)))


def size_of(observe: OwnFunction, seen: Seen) -> int:
    """Numbers that an observation function makes of one row.

    Raises:
        InputError: it fails on servers where nothing has happened yet, or makes none.
    """
    with np.errstate(all="ignore"):
        size = observe(seen, (len(seen.row), None), np.float32, finite=False).shape[1]
    if not 1 <= size <= 1 << 16:
        raise InputError(f"{observe.where}: expected 1 to 65536 numbers for each row, got {size}")
    return int(size)
