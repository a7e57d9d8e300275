"""What an action is: the choices of a learner, and the compiled policies that make batches of them.

An action is a frozen dataclass of settings in a file of its own, with a line in `llmsched_env.actions.ACTIONS`. It is
either a `Codec`, one policy kernel that reads the choice from its memory, or, like `Mixture`, several baselines of
which the choice picks one; these have a codec too, for what needs no choice. The compiled step of the environment runs
kernels and knows no action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from engine.compiled.records import cells_of
from engine.device.latency import LatencyModel
from engine.device.predicting import BEFORE, DEVICE, check_device, device_of
from engine.errors import InputError
from engine.fields import checked
from engine.ranges import Count
from engine.server.policy import Kernel, Policy
from llmsched_env.observation import OBSERVER_ROW_MEMORY

LEVELS = OBSERVER_ROW_MEMORY
"""Where in a codec's row memory the levels of the present batch begin, behind what the observer remembers."""
LARGEST = 1e9
"""Largest parameter of a codec: seconds, tokens or a factor."""
PROFILE = "profile"
"""Name of the first parameter of every codec: the device (a record of DEVICE), which the observer reads there."""
BEFORE_DEVICE = {f"{PROFILE}.{name}": value for name, value in BEFORE.items()}
"""What policies that were stored earlier do not say of their device."""


@dataclass(frozen=True)
class Action:
    """The choices that a learner has at each decision."""

    name: ClassVar[str]
    """How configurations and options call it."""

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            InputError: one does not fit.
        """
        checked(self, f"action {self.name!r}: ")

    @property
    def heads(self) -> dict[str, int]:
        """How many choices each dimension has, by the name of the dimension."""
        raise NotImplementedError

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many choices each dimension has."""
        return tuple(self.heads.values())

    @property
    def codec(self) -> "Codec":
        """What makes the batches for which nobody is asked, and those of a choice that cannot be done."""
        raise NotImplementedError

    @property
    def holds(self) -> int:
        """Iterations for which a choice holds."""
        return 1

    def policies(self, prediction: str) -> Sequence[Policy]:
        """The baselines of which the choice picks one; none: the codec reads it.

        Args:
            prediction: channel of the environment's predictions of output lengths ("": there are none).

        Raises:
            InputError: one that cannot be run there.
        """
        return ()

    def space(self) -> spaces.Space[Any]:
        """`Discrete` for one dimension, `MultiDiscrete` for several."""
        return spaces.Discrete(self.sizes[0]) if len(self.sizes) == 1 else spaces.MultiDiscrete(list(self.sizes))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the name and the settings."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}


@dataclass(frozen=True)
class Codec(Action):
    """An action that one policy kernel understands: it reads levels from its memory and fills the batch.

    Its row memory is: what the observer remembers, the levels of the present batch from cell LEVELS on, its own cells.
    """

    PARAMS: ClassVar[np.dtype]
    """The kernel's parameters by name, a record of float64 (`engine.compiled.records`); the first is PROFILE."""
    ENDLESS: ClassVar[tuple[str, ...]] = ()
    """Which of them are numbers above 0 that may be infinite."""
    BEFORE: ClassVar[Mapping[str, float]] = {}
    """What a parameter was before it had a name: policies that were stored earlier do not have it."""
    kernel: ClassVar[Kernel]
    """Plans a batch of the levels in its memory."""
    request_memory: ClassVar[int]
    """Columns of its memory of each request."""
    own_cells: ClassVar[int]
    """Cells of its row memory behind the levels."""
    DECODES: ClassVar[tuple[int, ...]]
    """The choice with which all decodes run, and nothing else: where there is nothing to decide."""
    FALLBACK: ClassVar[tuple[int, ...]]
    """The choice where the learner's leads nowhere: the batch of Sarathi-Serve, or what comes next to it."""
    LEARNS: ClassVar[bool] = False
    """Whether the kernel learns from every batch: then it plans those for which nobody is asked, too, as it does where
    the policy has left the environment."""

    hold: Count = 1
    """Iterations for which a choice holds (those that are skipped do not count): what memory costs is seen only after
    many seconds, and noise that lasts a second explores more than noise of one batch."""

    def __init_subclass__(cls) -> None:
        """Check the parameters.

        Raises:
            InputError: the first of them is not the device.
        """
        super().__init_subclass__()
        own = cls.__dict__.get("PARAMS")
        if own is not None and ((own.names or ("",))[0] != PROFILE or own.fields[PROFILE][0] != DEVICE):
            raise InputError(f"action {cls.name!r}: PARAMS: expected ({PROFILE!r}, DEVICE) first, got {own.names}")

    @property
    def codec(self) -> "Codec":
        """Itself."""
        return self

    @property
    def holds(self) -> int:
        """Iterations for which a choice holds."""
        return self.hold

    @property
    def row_memory(self) -> int:
        """Cells of its row memory."""
        return LEVELS + len(self.sizes) + self.own_cells

    def named(self, model: LatencyModel) -> dict[str, Any]:
        """The kernel's parameters behind the device by name: numbers, lists of them, mappings for what is nested.

        Args:
            model: predicts how long a batch takes.
        """
        raise NotImplementedError

    def params(self, model: LatencyModel) -> np.ndarray:
        """The kernel's parameters as float64 cells, in the order of PARAMS."""
        return to_cells(self.PARAMS, {PROFILE: device_of(model), **self.named(model)}, "codec")

    def told(self, params: np.ndarray, model: LatencyModel) -> np.ndarray:
        """The same parameters, but for what they know of a device: that is this one now."""
        return to_cells(self.PARAMS, to_names(self.PARAMS, params) | {PROFILE: device_of(model)}, "codec")

    def is_sound(self, cells: np.ndarray, request: np.ndarray) -> bool:
        """Whether what the kernel indexes with is in range, after something else has written its memory.

        Args:
            cells: row memory; the levels are known to be in range.
            request: memory of the requests.
        """
        return True

    def to_names(self, params: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters as policies are stored with them: the float64 cells of each name, nested ones with a dot."""
        return {name: cells.copy() for name, cells in flat(self.PARAMS, params)}

    def from_names(self, named: Mapping[str, np.ndarray]) -> np.ndarray:
        """The parameters of a stored policy, also of one that was stored before there were all of them (BEFORE).

        Raises:
            InputError: a name that this codec does not have, or one too few, or another number of cells.
        """
        cells, before = dict(flat(self.PARAMS, np.zeros(cells_of(self.PARAMS)))), {**BEFORE_DEVICE, **self.BEFORE}
        if strange := sorted((set(named) - set(cells)) | (set(cells) - set(named) - set(before))):
            raise InputError(f"codec: {'unknown' if strange[0] in named else 'missing'} parameter {strange[0]!r:.80}")
        for name, own in cells.items():
            given = named.get(name, np.full(own.shape, before.get(name)))
            if given.shape != own.shape:
                raise InputError(f"codec: {name}: expected {own.size} numbers, got shape {given.shape}")
            own[:] = given
        return np.concatenate(list(cells.values()))

    def knows(self, params: np.ndarray, model: LatencyModel) -> bool:
        """Whether parameters predict batches with the numbers of this device."""
        return bool(to_names(self.PARAMS, params)[PROFILE] == device_of(model))

    def check_params(self, params: np.ndarray) -> None:
        """Check parameters that come from a file before compiled code takes them for levels and divisors.

        Args:
            params: float64 cells in the order of PARAMS.

        Raises:
            InputError: numbers that no codec of this kind has.
        """
        size = cells_of(self.PARAMS)
        for name, values in flat(self.PARAMS, params):
            legal = values > 0.0 if name in self.ENDLESS else (values >= 0.0) & (values <= LARGEST)
            if not legal.all():
                raise InputError(f"codec: expected {size} numbers from 0 to {LARGEST:g}, decode rules above 0")
        check_device(params.view(self.PARAMS)[0][PROFILE])


def flat(dtype: np.dtype, cells: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The fields of a record, nested ones with a dot in their name, with the float64 cells of each."""
    found = []
    for name, (kind, at, *_) in (dtype.fields or {}).items():
        inside = cells[at // 8 : (at + kind.itemsize) // 8]
        found += [(f"{name}.{part}", a) for part, a in flat(kind, inside)] if kind.names else [(name, inside)]
    return found


def to_names(dtype: np.dtype, cells: np.ndarray) -> dict[str, Any]:
    """Float64 cells as a mapping by name: the inverse of `to_cells`."""
    found: dict[str, Any] = {}
    for name, (kind, at, *_) in (dtype.fields or {}).items():
        inside = cells[at // 8 : (at + kind.itemsize) // 8]
        found[name] = to_names(kind, inside) if kind.names else inside.reshape(kind.shape).tolist()
    return found


def to_cells(dtype: np.dtype, named: object, where: str) -> np.ndarray:
    """A mapping by name as the float64 cells of a record.

    Args:
        dtype: the record.
        named: a number or a (nested) list of numbers for each field, a mapping for a nested record.
        where: begins the message.

    Raises:
        InputError: a field too many or too few, or other numbers than it has.
    """
    names = dtype.names or ()
    if not isinstance(named, Mapping) or set(named) != set(names):
        got = ", ".join(map(str, named)) if isinstance(named, Mapping) else repr(named)
        raise InputError(f"{where}: expected {', '.join(names)}, got {got}")
    parts = []
    for name, (kind, *_) in (dtype.fields or {}).items():
        place, value = f"{where}.{name}", named[name]
        parts.append(to_cells(kind, value, place) if kind.names else _numbers(value, kind.shape, place))
    return np.concatenate(parts)


def _numbers(value: object, shape: tuple[int, ...], where: str) -> np.ndarray:
    try:
        found = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None or found.shape != shape:
        wanted = f"numbers of shape {shape}" if shape else "a number"
        raise InputError(f"{where}: expected {wanted}, got {value!r:.80}")
    return found.reshape(-1)
