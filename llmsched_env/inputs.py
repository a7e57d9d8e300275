"""What callers give to an environment, checked before compiled code sees it: actions, seeds and options of `reset`."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import gymnasium
import numpy as np

from engine.demand.requests import Requests
from engine.errors import InputError
from engine.ranges import COUNT
from llmsched_env.actions import Action


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number by type: Python's or numpy's, but no flag."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def show(value: object, most: int = 80) -> str:
    """A value for a message: one line of at most `most` characters, whatever its repr does."""
    try:
        text = repr(value)
    except Exception as error:  # a foreign object's repr may raise anything, and so may that of an int of 5000 digits
        text = f"a value of type {type(value).__name__} ({type(error).__name__} in its repr)"
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


class ResetNeeded(InputError, gymnasium.error.ResetNeeded):
    """A step or picture of an environment that has no episode: what `gymnasium.wrappers.OrderEnforcing` raises too."""


def needs_reset(what: str) -> ResetNeeded:
    """The error of a call that comes too early."""
    return ResetNeeded(f"Cannot call {what} before calling env.reset()")


class Actions:
    """Takes actions of one shape as the int64 array that the compiled step reads."""

    def __init__(self, action: Action, rows: int, batched: bool) -> None:
        """Prepare the array.

        Args:
            action: its space is that of one row.
            rows: servers.
            batched: whether callers give one for each row.
        """
        self.array = np.zeros((rows, len(action.sizes)), np.int64)
        self._slot = self.array.reshape(((rows,) if batched else ()) + (action.space().shape or ()))
        ranges = [f"0..{n - 1} ({name.replace('_', ' ')})" for name, n in action.heads.items()]
        self._expected = " and ".join([", ".join(ranges[:-1]), ranges[-1]] if len(ranges) > 1 else ranges)

    def take(self, given: object) -> np.ndarray:
        """The action as int64[rows, dimensions]; its range is left to the compiled step.

        Raises:
            InputError: not whole numbers, or another shape.
        """
        if type(given) is not np.ndarray or given.dtype.kind not in "iu":
            given = self._whole(given)
        if given.shape != self._slot.shape:
            raise self.refused(given)
        self._slot[...] = given  # what is too large for int64 becomes negative: out of range too
        return self.array

    def refused(self, given: object, row: int = -1) -> InputError:
        """The error for an action that is not in the space (in a given row)."""
        shape = self._slot.shape
        kind = f"an array of shape {shape}: " if shape else ""
        if row >= 0 and len(self.array) > 1:
            return InputError(f"action of row {row}: expected whole numbers {self._expected}, got {_row(given, row)}")
        size = f" of shape {given.shape}" if isinstance(given, np.ndarray) and given.shape != shape else ""
        return InputError(f"action: expected {kind}whole numbers {self._expected}, got {show(given)}{size}")

    def _whole(self, given: object) -> np.ndarray:
        try:
            if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
                raise self.refused(given)
            if isinstance(given, Sequence) and not all(is_whole(value) for value in _leaves(given)):
                raise self.refused(given)
            array = np.asarray(given)
        except InputError:
            raise
        except Exception as error:  # whatever a foreign object's conversion raises
            raise self.refused(given) from error
        if array.dtype.kind not in "iu":
            raise self.refused(given)
        return array


def _row(given: object, row: int) -> str:
    try:
        return show(np.asarray(given)[row].tolist())
    except Exception:  # the value is only shown
        return show(given)


def _leaves(given: object, depth: int = 0) -> Iterator[Any]:
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str | bytes) or depth > 2:
        yield given
        return
    for value in given:
        yield from _leaves(value, depth + 1)


def check_seed(seed: object, where: str = "seed") -> int | None:
    """The seed of one episode as gymnasium and numpy take it.

    Raises:
        InputError: neither None nor a whole number >= 0.
    """
    if seed is None:
        return None
    if not is_whole(seed) or seed < 0:
        raise InputError(f"{where}: expected a whole number >= 0 or None, got {show(seed)}")
    return int(seed)


def check_seeds(seed: object, rows: int) -> list[int | None]:
    """One seed for each row: row e has ``seed + e``, or its own entry of a list.

    Raises:
        InputError: not a whole number >= 0, None, or a sequence with one of these for each row.
    """
    if isinstance(seed, list | tuple | range) or (isinstance(seed, np.ndarray) and seed.ndim == 1):
        if len(seed) != rows:
            raise InputError(f"seed: expected one for each of {rows} rows, got {len(seed)}: {show(seed)}")
        return [check_seed(s, f"seed[{e}]") for e, s in enumerate(seed)]
    first = check_seed(seed)
    return [None if first is None else first + e for e in range(rows)]


def check_options(options: object, known: tuple[str, ...]) -> dict[str, Any]:
    """The options of `reset` as a dictionary.

    Raises:
        InputError: not a mapping, or an unknown key.
    """
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise InputError(f"options: expected a dictionary or None, got {show(options)}")
    for key in options:
        if key not in known:
            raise InputError(f"options: expected keys among {', '.join(known)}, got {show(key)}")
    return options


def check_requests(given: object, where: str) -> Requests:
    """A trace that a caller gives, validated anew: the plain constructor of `Requests` checks nothing.

    Raises:
        InputError: not `engine.Requests`, or one whose arrays do not hold what they should.
    """
    if not isinstance(given, Requests):
        raise InputError(f"{where}: expected a trace (engine.Requests), got {show(given)}")
    try:
        return given.replace()
    except InputError:
        raise
    except Exception as error:  # fields of any type
        raise InputError(f"{where}: expected a trace as Requests.create makes it, got one with {error}") from error


def check_traces(given: object, rows: np.ndarray) -> list[Requests | None]:
    """The traces of the rows that are reset (None elsewhere).

    Args:
        given: what came as ``options["requests"]``.
        rows: bool[rows], those that are reset.

    Raises:
        InputError: not a sequence with one trace for each row.
    """
    if not isinstance(given, list | tuple) or len(given) != len(rows):
        got = f"{len(given)} of them" if isinstance(given, list | tuple) else show(given)
        raise InputError(f"options['requests']: expected a list with a trace for each of {len(rows)} rows, got {got}")
    return [
        check_requests(trace, f"options['requests'][{e}]") if chosen else None
        for e, (trace, chosen) in enumerate(zip(given, rows.tolist(), strict=True))
    ]


def check_scenario(given: object, names: Sequence[str], has_trace: bool, where: str) -> int:
    """The number of the scenario that an episode is to play in, -1 where it is to be drawn.

    Args:
        given: its name or its number; None: nobody says.
        names: of the scenarios; one alone need not be named.
        has_trace: whether the caller gives a trace, which belongs to one of them.
        where: what a message calls it.

    Raises:
        InputError: no such scenario, or a trace that belongs to none.
    """
    if given is None:
        if has_trace and len(names) > 1:
            raise InputError(f"{where}: expected the scenario in which the trace is played, got none")
        return 0 if len(names) == 1 else -1
    if is_whole(given) and 0 <= given < len(names):
        return int(given)
    if not isinstance(given, str) or given not in names:
        few = ", ".join(map(repr, names[:3]))
        raise InputError(f"{where}: expected a number 0..{len(names) - 1} or a name ({few}, ...), got {show(given)}")
    return names.index(given)


def check_scenarios(given: object, names: Sequence[str], traces: Sequence[Requests | None]) -> list[int]:
    """The scenario of each row, as `check_scenario` gives it.

    Args:
        given: what came as ``options["scenario"]``: nothing, or a list with an entry for each row.
        names: of the scenarios.
        traces: that the rows are given.

    Raises:
        InputError: not such a list, or an entry that does not fit.
    """
    rows = len(traces)
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if given is not None and (not isinstance(given, list | tuple) or len(given) != rows):
        raise InputError(f"options['scenario']: expected a list with one for each of {rows} rows, got {show(given)}")
    each = given if given is not None else [None] * rows
    pairs = zip(each, traces, strict=True)
    return [
        check_scenario(one, names, trace is not None, f"options['scenario'][{e}]")
        for e, (one, trace) in enumerate(pairs)
    ]


def check_reset_mask(given: object, rows: int) -> np.ndarray:
    """The rows to reset, as gymnasium's vector environments take them: bool[rows] with at least one True.

    Raises:
        InputError: anything else.
    """
    legal = isinstance(given, np.ndarray) and given.dtype == np.bool_ and given.shape == (rows,) and given.any()
    if not legal:
        raise InputError(f"options['reset_mask']: expected bool[{rows}] with at least one True, got {show(given)}")
    return np.asarray(given)


def step_limit(given: object) -> int:
    """The limit that callers give to `gymnasium.make` (None and -1: none) as the number of steps, 0 for none.

    Raises:
        InputError: anything but None, -1 and a whole number >= 1.
    """
    if given is None or (is_whole(given) and given == -1):
        return 0
    return int(COUNT.check(given, "max_episode_steps"))


def check_row(row: object, rows: int) -> int:
    """The number of a row.

    Raises:
        InputError: not 0 to rows - 1.
    """
    if not is_whole(row) or not 0 <= row < rows:
        raise InputError(f"row: expected a whole number 0..{rows - 1}, got {show(row)}")
    return int(row)
