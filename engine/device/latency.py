"""`LatencyModel`: seconds of one iteration from the features of its batch.

    t = overhead + per_request x requests + per_chunk x prompt chunks + any_chunk if there is one
      + max(floor, per_token x tokens rounded up to tiles)      linear layers: weight load or arithmetic,
                                                                or a table of seconds at token counts, linear between
      + per_pair x prefill_pairs + per_read x prefill_reads     attention of the prompt chunks: arithmetic, KV read
      + per_context x decode_context                            KV read by the decodes,
      + per_uncached x max(0, decode_context - cached)          dearer where caches do not hold it
      + per_mixed x decode_context if there is a prompt chunk   dearer where one attention launch serves both
    t = max(t, eager_floor) for more than graph_tokens tokens   no CUDA graph: the host launches layer by layer,
                                                                the device waits for it
    t + bytes swapped / bandwidth                               KV moved to and from the host, not overlapped

A *profile* is a JSON file with these parameters and where they come from: device, model, versions, how they were
measured, residuals, and the range in which they hold.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, get_type_hints

import numpy as np
from numba import typeof

from engine.compiled.jit import hot_inlined, inner
from engine.config import EngineConfig
from engine.demand.requests import Requests
from engine.device.terms import Traits, batch_seconds
from engine.errors import InputError
from engine.fields import checked, convert, from_mapping
from engine.files.reading import kind_of, parse_json, read_json
from engine.files.writing import write_atomically
from engine.ranges import Bounds, number, whole
from engine.server.features import QUERY_TILE, WIDE_QUERY_TILE
from engine.server.state import Server
from engine.spec import Spec

FORMAT = "llmsched-profile/1"
DEFAULT_PROFILE = "rtx6000ada-mistral-7b"
"""The device where nobody names one."""

Time = Annotated[float, number(0.0, 1e6)]
"""A field of a model in seconds: a device twice as fast has half of it."""
USUAL_GRAPH = 512.0
"""Tokens of the largest CUDA graph where a profile does not say (the default of vLLM)."""
RANGES = ("tokens", "requests", "context_tokens", "chunks_behind")
"""What the validity in a provenance may state: least and largest of a batch, KV tokens of a request; least tokens of a
prompt chunk behind more than so many KV tokens."""
Number = Annotated[float, number(0.0, 1e9)]
"""A field in tokens, or a cell of the table."""


class Latency(NamedTuple):
    """Parameters in the form that compiled loops take."""

    coefficient: np.ndarray  # COEFFICIENTS[1]
    table: np.ndarray  # float64[k, 2], tokens and seconds through the linear layers; k = 0: floor and per_token


class Executor(Protocol):
    """Anything that can say how long the batch planned on a server takes: a model of a device, or the device."""

    @property
    def real_time(self) -> bool:
        """Whether it measures: then the time that the policy takes is measured, too, and added."""

    def start(self, requests: Requests) -> None:
        """Forget every earlier run and get ready for this trace."""

    def seconds(self, server: Server) -> float:
        """Run the batch in ``server.plan`` (already through `begin`) and return its duration in seconds."""


@inner
def charged(seconds: float, c: np.record, f: np.record) -> float:
    """Seconds of a batch with what a config charges for it.

    Args:
        seconds: without.
        c: a record with the fields CHARGES.
        f: the FEATURES record of the batch.
    """
    return float(seconds + c.decision + c.decision_per_request * f.requests + c.per_swapped * f.swapped)


@hot_inlined
def iteration_seconds(latency: Latency, features: np.ndarray) -> float:
    """Duration of one iteration in seconds from its FEATURES[1]; the formula of the module docstring."""
    c, f = latency.coefficient[0], features[0]
    t = batch_seconds(c, latency.table, latency.table.shape[0], f)
    if c.tick > 0.0:
        t = np.rint(t / c.tick) * c.tick
    return float(charged(t, c, f))


class AttentionPrices(NamedTuple):
    """Seconds beside those of the linear layers."""

    pair: float  # per (token, KV token) of a prompt
    read: float  # per (token, KV token before or in its chunk) of a prompt: reads by tiles of queries
    request: float  # per decode
    context: float  # per KV token that a decode reads


@dataclass(frozen=True)
class LatencyModel:
    """A surrogate of one device running one model (seconds, tokens)."""

    overhead: Time
    """Fixed seconds per iteration (launches, sampling, host)."""
    floor: Time
    """Seconds to read the weights once; the linear layers never take less."""
    per_token: Time
    """Seconds per token through the linear layers."""
    per_pair: Time
    """Seconds per (query, key) pair of prefill attention."""
    per_context: Time
    """Seconds per KV token that decodes read."""
    per_request: Time = 0.0
    """Seconds per item in the batch."""
    tile: Annotated[int, whole(1, 10**9, noun="tokens")] = 1
    """Columns of a GeMM tile: tokens are rounded up to a multiple (1: no steps)."""
    tick: Time = 0.0
    """Results are rounded to multiples of this many seconds (0: not rounded)."""
    per_chunk: Time = 0.0
    """Seconds per item that is a prompt chunk, on top of per_request."""
    any_chunk: Time = 0.0
    """Seconds, on top, of a batch with a prompt chunk: the second attention launch, no CUDA graph."""
    per_read: Time = 0.0
    """Seconds per KV token that a tile of queries of a prompt chunk reads."""
    query_tile: Literal[128, 256] = 128
    """Queries in such a tile."""
    per_uncached: Time = 0.0
    """Seconds, on top of per_context, per KV token that decodes read beyond `cached`."""
    cached: Number = 0.0
    """KV tokens that decodes read from caches."""
    per_mixed: Time = 0.0
    """Seconds, on top of per_context, per KV token that decodes read in a batch with a prompt chunk: what a launch that
    serves both costs (FlashAttention 2 in vLLM; 0 where prompts and decodes are launched apart, or with
    FlashAttention 3)."""
    eager_floor: Time = 0.0
    """Least seconds of a batch of more than `graph_tokens` tokens, whatever is in it: the host launches its layers one
    by one. In vLLM 0.24 some 0.02 to 0.035 s for 32 layers (docs/results/inside-vllm.md)."""
    graph_tokens: Number = 0.0
    """Tokens of the largest batch that is a CUDA graph (vLLM: max_cudagraph_capture_size, by default 512)."""
    table: tuple[tuple[Number, Number], ...] = ()
    """Tokens and seconds through the linear layers, instead of floor, per_token and tile; at least two, rising."""
    name: str = "custom"
    """Name of the profile."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Device, model, versions, how it was measured, residuals, validity range."""

    real_time: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check signs and finiteness.

        Raises:
            InputError: a parameter is negative, not finite, or everything is zero.
        """
        if not isinstance(self.name, str) or not self.name.isprintable() or not 1 <= len(self.name) <= 300:
            raise InputError(f"profile: name: expected up to 300 printable characters, got {kind_of(self.name)}")
        where = f"profile {self.name!r}: "
        checked(self, where)
        self._check_table(where)
        self._check_validity(where)
        if self.overhead + self.floor + self.per_token == 0.0 and not self.table:
            raise InputError(f"{where}an iteration would take no time at all")

    def _check_table(self, where: str) -> None:
        rows = np.array(self.table, np.float64).reshape(-1, 2)
        rises = len(rows) > 1 and bool((np.diff(rows[:, 0]) > 0).all() and (rows[:, 1] > 0.0).all())
        if len(rows) and not (rises and (rows[:, 0] >= 0.0).all()):
            raise InputError(f"{where}table: expected 2 or more pairs of rising tokens, seconds > 0")
        object.__setattr__(self, "table", tuple((float(n), float(t)) for n, t in rows))

    def _check_validity(self, where: str) -> None:
        """The ranges that comparisons warn beyond: pairs of numbers by name."""
        ranges = convert(self.provenance.get("validity", {}), dict[str, Any], f"{where}provenance.validity")
        for name in RANGES:
            if name in ranges:
                convert(ranges[name], tuple[float, float], f"{where}provenance.validity.{name}")

    def scaled(self, factor: float) -> "LatencyModel":
        """The same device slower by a factor (0.5: twice as fast): every time of the model times `factor`."""
        table = tuple((n, t * factor) for n, t in self.table)
        return replace(self, **{name: factor * getattr(self, name) for name in TIMES}, table=table)

    def mixed(self, ratio: float) -> "LatencyModel":
        """The same device where a decode's KV token costs so many times as much beside a prompt chunk (1: the same)."""
        return replace(self, per_mixed=(ratio - 1.0) * self.per_context)

    def eager(self, seconds: float) -> "LatencyModel":
        """The same device behind a host that takes so long to launch a batch which no CUDA graph covers."""
        return replace(self, eager_floor=seconds, graph_tokens=self.graph_tokens or USUAL_GRAPH)

    def compiled(self, config: EngineConfig | None = None) -> Latency:
        """The parameters as arrays for compiled loops; with a config what it charges, too."""
        values = {name: getattr(self, name) for name in NUMBERS} | _charges(config)
        coefficient = np.array([tuple(values[name] for name in COEFFICIENTS.names or ())], COEFFICIENTS)
        return Latency(coefficient.view(np.recarray), np.array(self.table, np.float64).reshape(-1, 2))

    @property
    def attention(self) -> "AttentionPrices":
        """What attention and requests cost, by what there is to count."""
        tile = WIDE_QUERY_TILE if Traits(self.cached, float(self.query_tile)).query_tile > QUERY_TILE else QUERY_TILE
        return AttentionPrices(self.per_pair, self.per_read / tile, self.per_request, self.per_context)

    def start(self, requests: Requests) -> None:
        """Nothing to prepare: the model has no memory."""

    def seconds(self, server: Server) -> float:
        """Duration in seconds of the batch planned on `server`."""
        return float(iteration_seconds(self.compiled(), server.features))

    def save(self, path: Path) -> None:
        """Write the profile as JSON, completely or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        write_atomically(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> "LatencyModel":
        """Build a model from a parsed profile.

        Raises:
            InputError: another format, an unknown or a missing key, a value of another type or out of range.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"{where}: expected a profile with format {FORMAT!r}")
        return from_mapping(cls, {k: v for k, v in data.items() if k != "format"}, where)


_DECLARED = get_type_hints(LatencyModel, include_extras=True)
TIMES = tuple(name for name, kind in _DECLARED.items() if kind is Time)
"""Fields that a profile gives in seconds."""
NUMBERS = (*TIMES, "tile", "graph_tokens", *Traits._fields)
"""All numbers that it gives."""
CHARGES = ("decision", "decision_per_request", "per_swapped")
"""Seconds that a config charges: for a scheduling decision, for each request in a batch, to move half a KV block."""
COEFFICIENTS = np.dtype([(name, "f8") for name in (*NUMBERS, *CHARGES)], align=True)
"""All numbers of a model as compiled loops take them."""


def _charges(config: EngineConfig | None) -> dict[str, float]:
    costs = (config.decision_s, config.decision_per_request_s, config.half_block_s) if config else (0.0, 0.0, 0.0)
    return dict(zip(CHARGES, costs, strict=True))


class Around:
    """What executors around another one share: they start with it, and its time is theirs."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    @property
    def real_time(self) -> bool:
        """Whether the executor's seconds are those of a clock."""
        return self.executor.real_time

    def start(self, requests: Requests) -> None:
        """Get ready for this trace."""
        self.executor.start(requests)


class Charged(Around):
    """An executor whose time includes the scheduler's own cost and that of swapping, which a real one measures."""

    def __init__(self, executor: Executor, config: EngineConfig) -> None:
        super().__init__(executor)
        self._charges = SimpleNamespace(**_charges(config))

    def seconds(self, server: Server) -> float:
        """Run the planned batch; its seconds with these costs."""
        seconds = self.executor.seconds(server)
        return seconds if self.real_time else charged(seconds, self._charges, server.features[0])


def profile_names() -> list[str]:
    """Names of the profiles that ship with the package."""
    folder = resources.files("engine") / "data" / "profiles"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


CHANGES: dict[str, tuple[Bounds, Callable[[LatencyModel, float], LatencyModel]]] = {
    "speed": (number(0.0, 1e6, above=True), lambda model, speed: model.scaled(1.0 / speed)),
    "mixed": (number(1.0, 1e3), LatencyModel.mixed),
    "eager": (number(0.0, 1.0), LatencyModel.eager),
    "per_request": (number(0.0, 1.0), lambda model, seconds: replace(model, per_request=seconds)),
    "tile": (whole(1, 10**6, noun="tokens"), lambda model, tokens: replace(model, tile=int(tokens))),
}
"""What a spec may change of a profile: the range of each setting, and what it makes of the model."""


def load_profile(name: str) -> LatencyModel:
    """A shipped profile by name, or a profile file by path.

    ``NAME:speed=2`` is a device twice as fast; ``NAME:mixed=2`` one on which a decode's KV token costs twice as much
    beside a prompt chunk as without; ``NAME:eager=0.03`` one whose host takes 30 ms to launch a batch which no CUDA
    graph covers; ``NAME:per_request=2e-5`` one on which each item of a batch costs 20 us;
    ``NAME:tile=128`` one whose linear layers take tokens by 128 at a time (without effect on a table).

    Raises:
        InputError: no such profile, unreadable or foreign file, or a setting out of its range.
    """
    spec = Spec.of_place(name, tuple(CHANGES))
    if spec.rest:
        where = f"profile {name!r}"
        model = load_profile(spec.name)
        for key, text in spec.settings(where, tuple(CHANGES)).items():
            range_, change = CHANGES[key]
            model = change(model, float(range_.parse(text, f"{where}: {key}")))
        return replace(model, name=name)
    if name in profile_names():
        text = (resources.files("engine") / "data" / "profiles" / f"{name}.json").read_text(encoding="utf-8")
        return LatencyModel.from_json(parse_json(text, name), name)
    if not name.endswith(".json"):
        raise InputError(f"profile: expected one of {', '.join(profile_names())} or a .json file, got {name!r}")
    return LatencyModel.from_json(read_json(name, "a profile"), name)


LATENCY_TYPE = typeof(LatencyModel(1.0, 0.0, 0.0, 0.0, 0.0).compiled())
