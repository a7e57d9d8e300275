"""`EnvState`: one server with everything that its future depends on, to go on from there as often as wanted.

`save_state` and `load_state` of both environment classes give and take it. A row's state fits every row of every
environment of the same configuration, scalar or vector, in any process: planning, search and training from stored
states copy it instead of the environment.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from engine.compiled.jit import hot
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.server.features import new_features
from engine.server.integrity import FAULTS, checksum, server_fault
from engine.server.state import ROW, Hidden, Server, View, new_plan, set_limits
from llmsched_env.actions import Codec
from llmsched_env.actions.action import LEVELS
from llmsched_env.config import EnvConfig
from llmsched_env.generators import generator_at
from llmsched_env.inputs import is_whole, show
from llmsched_env.observation import OBSERVATION_LIMIT
from llmsched_env.rows import Memories, Outcome
from llmsched_env.worlds import World


@dataclass(frozen=True, eq=False)
class EnvState:
    """One server between two decisions, with the generator of its next traces.

    It pickles, and `load_state` copies: one object may be loaded any number of times. Its arrays are not to be changed:
    `load_state` compares `check`, looks whether they fit together, and refuses what does not. What a wrapper counts
    (`gymnasium.wrappers.TimeLimit`) and what was rendered is not part of it; `copy.deepcopy(env)` copies these too.
    """

    data: np.ndarray
    """One record: ``data["row"]`` (`state.ROW`), ``request``, ``queue``, ``running``, ``ledger``, ``output``,
    ``tier``, memories, the last outcome, return and sums of the reward terms. Its dtype is the layout's version."""
    gaps: np.ndarray
    """Histogram of the gaps between tokens, int64[k, 2]: place (tier x buckets + bucket) and count."""
    generator: dict[str, Any]
    """State of the numpy generator that draws the next episodes."""
    config: str
    """Digest of the configuration and of the latency profile."""
    check: int
    """Checksum of the arrays."""


def limits_of(config: EnvConfig) -> np.ndarray:
    """The limits of a server as a ROW record."""
    limits = np.zeros(1, ROW).view(np.recarray)
    set_limits(limits, config.engine)
    return limits


def config_digest(config: EnvConfig, model: LatencyModel) -> str:
    """16 hexadecimal digits that are the same for equal configurations and profiles, in every process."""
    workload = {**vars(config.workload), "lengths": config.workload.length_model.description}
    alone = {name: value for name, value in vars(config).items() if name != "scenarios"}
    text = repr(({**alone, "workload": workload}, model))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class StateCodec:
    """Reads rows of a fleet into states and writes them back."""

    __slots__ = (
        "_bytes",
        "_codec",
        "_columns",
        "_gaps",
        "_limits",
        "_named",
        "_record",
        "_scratch",
        "_used",
        "_words",
        "digests",
        "layout",
    )

    def __init__(
        self,
        servers: Server,
        memories: Memories,
        outcome: Outcome,
        sums: dict[str, np.ndarray],
        codec: Codec,
    ) -> None:
        """Lay the record out.

        Args:
            servers: rows of servers.
            memories: of all kernels of all rows.
            outcome: of the last step.
            sums: further arrays with one entry for each row.
            codec: whose memory is that of kernel 0.
        """
        self._codec = codec
        view, hidden = servers.visible, servers.hidden
        stacked = {
            "row": view.row,
            "request": view.request,
            "queue": view.queue,
            "running": view.running,
            "ledger": hidden.ledger,
            "output": hidden.output,
            "release": hidden.release,
            "tier": hidden.tier,
            "draft": servers.plan.draft,
            "memory_request": memories.request,
            "memory_row": memories.row,
            **outcome._asdict(),
            **sums,
        }
        plain = {name: _plain(array) for name, array in stacked.items()}
        self.layout = np.dtype([(name, a.dtype, a.shape[1:]) for name, a in plain.items()], align=True)
        self.digests: list[str] = []
        self._record = np.zeros(1, self.layout)
        self._bytes = self._record.view(np.uint8)
        self._words = self._record.view(np.int64)
        self._used = _used(self.layout).view(np.int64)
        self._columns: list[tuple[np.ndarray, np.ndarray]] = []
        assert self.layout.fields is not None
        for name, array in plain.items():
            size, at = array[0].nbytes, int(self.layout.fields[name][1])
            rows = array.reshape(len(array), -1).view(np.uint8)
            self._columns.append((rows, self._bytes[at : at + size]))
        self._gaps, self._named = hidden.gaps, servers.plan.named
        self._limits: list[np.ndarray] = []
        self._scratch = self._server()

    def _server(self) -> Server:
        """The record as the arrays of one server."""

        def records(name: str) -> np.ndarray:
            return self._record[name][0].view(np.recarray)

        one, n = self._record, self._record["queue"].shape[1]
        view = View(records("request"), one["queue"][0], one["running"][0], records("row"))
        gaps, refresh = self._gaps[0], np.zeros(0, np.float32)
        hidden = Hidden(records("ledger"), one["output"][0], records("tier"), gaps, refresh, one["release"][0])
        return Server(view, hidden, new_plan(n), new_features())

    def describe(self, worlds: Sequence[World]) -> None:
        """Set what states are compared with: limits and digest of each world."""
        self._limits = [limits_of(world.config) for world in worlds]
        self.digests = [config_digest(world.config, world.model) for world in worlds]

    def _world_of(self, state: EnvState) -> int:
        """The world that a state was saved in."""
        return self.digests.index(state.config)

    def save(self, e: int, generator: np.random.Generator, world: int) -> EnvState:
        """The state of row `e`, which is in a world."""
        for rows, cell in self._columns:
            cell[:] = rows[e]
        view, row = self._scratch.visible, self._scratch.visible.row[0]
        view.queue[row.num_waiting :] = 0  # what is left of earlier requests
        view.running[row.num_running :] = 0
        self._words &= self._used
        flat = self._gaps[e].reshape(-1)
        gaps = np.empty((int(_count(flat)), 2), np.int64)
        _gather(flat, gaps)
        state = dict(generator.bit_generator.state)
        data, digest = self._bytes.copy().view(self.layout), self.digests[world]
        return EnvState(data, gaps, state, digest, int(checksum(self._words)))

    def verify(self, state: object) -> EnvState:
        """Copy a state into the scratch record and check it; returns it.

        Raises:
            InputError: not a state, one of another configuration or version, or one whose arrays do not fit together.
        """
        state = self._of_kind(state)
        self._bytes[:] = np.ascontiguousarray(state.data).view(np.uint8)
        self._words &= self._used
        if not is_whole(state.check) or state.check != int(checksum(self._words)):
            raise InputError("state: expected the arrays as save_state gave them, got changed or damaged ones")
        code = int(server_fault(self._scratch, self._limits[self._world_of(state)]))
        if code != 0:
            raise InputError(f"state: expected the arrays of a server that fit together, got {FAULTS[code]}")
        one = self._record
        legal = is_sound(self._codec, one["memory_row"][0, 0], one["memory_request"][0, 0], one["observation"][0])
        if not legal or not 0 <= one["draft"]["number"][0, 0] < 2**53:
            raise InputError("state: expected memories and an observation as a step leaves them, got others")
        self._check_gaps(state.gaps)
        return state

    def _of_kind(self, state: object) -> EnvState:
        """Something as a state of such an environment."""
        if not isinstance(state, EnvState):
            raise InputError(f"state: expected an EnvState as save_state gives it, got {show(state)}")
        if not isinstance(state.data, np.ndarray) or state.data.dtype != self.layout or state.data.shape != (1,):
            raise InputError(f"state: expected the layout of this environment, got {_differs(state.data, self.layout)}")
        if state.config not in self.digests:
            known = f"{self.digests[0]}{', ...' if len(self.digests) > 1 else ''}"
            raise InputError(
                f"state: expected one of this environment's configuration ({known}), got {show(state.config)}"
            )
        return state

    def check(self, state: object) -> None:
        """Check that `load` takes a state, its generator included.

        Raises:
            InputError: it does not.
        """
        generator_at(self.verify(state).generator, np.random.default_rng(0))

    def _check_gaps(self, gaps: object) -> None:
        if not _are_pairs(gaps) or (len(gaps) > 0 and not _count_places(gaps[:, 0], gaps[:, 1], self._gaps[0].size)):
            raise InputError("state: expected gaps as int64[k, 2] (place, count > 0), places in order, got others")

    def load(self, e: int, state: object, generator: np.random.Generator) -> tuple[np.random.Generator, int]:
        """Put row `e` into a state.

        Returns:
            The generator of the row's next episodes (the given one, or a new one where the state's is of another kind),
            and the world that the state was saved in.

        Raises:
            InputError: see `verify`; the row stays as it is.
        """
        state = self.verify(state)
        generator = generator_at(state.generator, generator)
        for rows, cell in self._columns:
            rows[e] = cell
        self._named[e] = 0  # plans are numbered on from the state's
        flat = self._gaps[e].reshape(-1)
        flat[:] = 0
        flat[state.gaps[:, 0]] = state.gaps[:, 1]
        return generator, self._world_of(state)


def _are_pairs(gaps: object) -> TypeGuard[np.ndarray]:
    return isinstance(gaps, np.ndarray) and gaps.dtype == np.int64 and gaps.ndim == 2 and gaps.shape[1] == 2


def _count_places(places: np.ndarray, counts: np.ndarray, size: int) -> bool:
    """Whether these are rising places below `size`, each with a count."""
    rising = places[0] >= 0 and places[-1] < size and bool((np.diff(places) > 0).all())
    return bool(rising and counts.min() > 0 and counts.max() < 2**31)


@hot
def _count(flat: np.ndarray) -> int:
    found = 0
    for k in range(flat.shape[0]):
        found += flat[k] != 0
    return found


@hot
def _gather(flat: np.ndarray, out: np.ndarray) -> None:
    """Places and values of what is not zero: int64[found, 2]."""
    found = 0
    for k in range(flat.shape[0]):
        if flat[k] != 0:
            out[found, 0], out[found, 1] = k, flat[k]
            found += 1


@hot
def _all_finite(cells: np.ndarray) -> bool:
    for k in range(cells.shape[0]):
        if not np.isfinite(cells[k]):
            return False
    return True


def is_sound(codec: Codec, cells: np.ndarray, request: np.ndarray, observation: np.ndarray) -> bool:
    """Whether compiled code can go on with a memory of kernel 0 and an observation that something else has written.

    Args:
        codec: whose memory it is.
        cells: row memory.
        request: memory of the requests.
        observation: of the row.
    """
    sound = _memory_is_sound(cells, request, observation, np.array(codec.sizes))
    return bool(sound and codec.is_sound(cells, request))


@hot
def _memory_is_sound(cells: np.ndarray, request: np.ndarray, observation: np.ndarray, sizes: np.ndarray) -> bool:
    """The cells that the observer divides with and the codec indexes with (kernel 0), and the last observation.

    Args:
        cells: row memory.
        request: memory of the requests.
        observation: of the row.
        sizes: choices in each dimension of the codec.
    """
    for k in range(observation.shape[0]):
        if not abs(observation[k]) <= OBSERVATION_LIMIT:
            return False
    for k in range(LEVELS):
        if cells[k] < 0:
            return False
    for d in range(sizes.shape[0]):
        if not 0.0 <= cells[LEVELS + d] < sizes[d]:
            return False
    return bool(_all_finite(cells) and _all_finite(request.reshape(request.size)))


def _used(kind: np.dtype) -> np.ndarray:
    """uint8[itemsize]: 255 where a byte of a dtype belongs to a field, 0 for padding, which copies do not keep."""
    if kind.subdtype is not None:
        base, shape = kind.subdtype
        return np.tile(_used(base), int(np.prod(shape)))
    used = np.zeros(kind.itemsize, np.uint8)
    fields: Any = kind.fields or {}
    for inner, at, *_ in fields.values():
        used[at : at + inner.itemsize] = _used(inner)
    return used if kind.names else np.full(kind.itemsize, 255, np.uint8)


def _plain(array: np.ndarray) -> np.ndarray:
    """An array as numpy's own class and dtype: two records are one type only if both are."""
    plain = array.view(np.ndarray)
    return plain.view(np.dtype((np.void, plain.dtype))) if plain.dtype.fields else plain


def _differs(data: object, layout: np.dtype) -> str:
    """What a state's data has that this environment's has not, in a few words."""
    if not isinstance(data, np.ndarray):
        return show(data)
    mine: Any = layout.fields
    theirs: Any = data.dtype.fields or {}
    for name, (kind, *_) in mine.items():
        if name not in theirs or theirs[name][0] != kind:
            return f"another {name}: {theirs[name][0].shape if name in theirs else 'none'}, not {kind.shape}"
    return f"{data.dtype.name} of shape {data.shape}"
