"""Where the requests of a run come from: a trace file or a synthetic workload, as options describe it."""

from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from agents.work.carried import CarriedFile, takes_files
from agents.work.records import picked
from engine.config import EngineConfig
from engine.demand.requests import DEFAULT_TIERS, Requests, Tier
from engine.demand.tiers import parse_tiers
from engine.demand.trace_files import read_columns
from engine.demand.trace_options import AS_IT_IS, TimeUnit, TraceOptions, Unservable
from engine.demand.traces import read_trace, trace_lengths
from engine.demand.workload import Workload, parse_workload
from engine.errors import InputError
from engine.files.reading import file_digest
from engine.runs.serve import RequestSource
from engine.server.policy import Policy

DEFAULT_RATE = 1.6
"""Arrival rate of lengths without times (requests/s)."""
DEFAULT_NUM_REQUESTS = 2000
"""Requests per run where neither a file nor a workload says how many."""


@dataclass(frozen=True)
class Source(RequestSource):
    """Where the requests come from: a trace file or a synthetic workload."""

    trace: str | None = None
    """Trace file, or None."""
    workload: str = "poisson"
    """Workload spec; beside a trace the arrival process put on its lengths."""
    synthetic_arrivals: bool = True
    """Whether arrival times are drawn (a workload, a file without times, or a trace with its own workload)."""
    num_requests: int | None = None
    """Requests per run; None: every row of a file with recorded times, else DEFAULT_NUM_REQUESTS."""
    prediction: str | None = None
    """Channel of length predictions for every policy that needs any; None: each its own."""
    reading: TraceOptions = AS_IT_IS
    """How the rows of the trace are read; its scale belongs to the recorded rate, and to no other."""
    tiers: tuple[Tier, ...] = DEFAULT_TIERS
    """Service tiers with their shares and deadlines; each request's is drawn by share."""
    max_concurrency: int = 0
    """Most requests in flight (0: no limit)."""

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the fields, where files go along the trace as a file."""
        carried = self.trace is not None and takes_files()
        return vars(self) | ({"trace": CarriedFile.of(str(self.trace), "a trace")} if carried else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the fields; a trace that came along is where this machine has it."""
        trace = state["trace"]
        vars(self).update(state | {"trace": trace.here() if isinstance(trace, CarriedFile) else trace})

    @property
    def closed_loop(self) -> str:
        """What limits the requests in flight, in a few words; "" for an open loop."""
        if self.max_concurrency:
            return f"at most {self.max_concurrency} requests in flight"
        workload = self.drawn_workload
        if workload is None or not (workload.is_closed or workload.max_concurrency):
            return ""
        if workload.is_closed:
            return f"{workload.concurrency} users with think time {workload.think}"
        return f"at most {workload.max_concurrency} requests in flight"

    def channel(self, policy: Policy) -> str:
        """The channel of a policy's predictions in this run, "" if it needs none."""
        return (self.prediction or policy.channel) if policy.channel else ""

    def requests(self, rate: float | None, seed: int) -> Requests:
        """The trace of one load and seed, with its limit; the same arguments give the same requests bit for bit.

        Args:
            rate: arrival rate in requests/s; None keeps recorded times (times rate_scale).
            seed: draws everything random.

        Raises:
            InputError: the file or the arguments do not fit.
        """
        drawn = self._drawn(rate, seed) if self.synthetic_arrivals else self._recorded(rate, seed)
        return drawn.limited(self.max_concurrency)

    def _drawn(self, rate: float | None, seed: int) -> Requests:
        """Requests whose arrivals are drawn, with the lengths of the workload or of the file."""
        workload = parse_workload(self.workload, self.tiers)
        count = workload.num_requests if self.trace is None else DEFAULT_NUM_REQUESTS
        if self.trace is not None:
            workload = replace(workload, lengths=trace_lengths(self.trace, self.reading))
        count = count if self.num_requests is None else self.num_requests
        return replace(workload, rate=workload.rate if rate is None else rate, num_requests=count).generate(seed)

    def _recorded(self, rate: float | None, seed: int) -> Requests:
        """Requests at the times of the file."""
        assert self.trace is not None
        reading = self.reading if rate is None else replace(self.reading, rate_scale=1.0)
        return read_trace(self.trace, reading, rate=rate, num_requests=self.num_requests, seed=seed, tiers=self.tiers)

    @property
    def drawn_workload(self) -> Workload | None:
        """The workload whose arrivals are drawn; None for recorded times."""
        return parse_workload(self.workload) if self.synthetic_arrivals else None

    @property
    def usual_rate(self) -> float | None:
        """The arrival rate where none is asked for (requests/s); None: that of the times, or none can be chosen."""
        workload = self.drawn_workload
        if workload is None or workload.is_closed:
            return None
        if self.trace is None:
            return workload.rate
        return DEFAULT_RATE if workload.process.has_rate else None

    def left_out(self) -> dict[str, int]:
        """Rows of the trace file that are not served, by reason; empty for a workload."""
        if self.trace is None:
            return {}
        limit = None if self.synthetic_arrivals else self.num_requests
        return read_columns(self.trace, self.reading, limit).left_out

    @property
    def seed_note(self) -> str:
        """One line for reports: what differs between seeds."""
        if not self.synthetic_arrivals:
            return (
                "Recorded arrival times and lengths are replayed as they are: seeds differ only in tiers, "
                "and intervals say nothing about other arrivals."
            )
        if self.trace:
            return "Seeds differ in the order of the file's lengths, the tiers and the arrival times."
        return "Seeds differ in lengths, tiers and arrival times."

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with the digest of the trace file."""
        data = asdict(self)
        del data["reading"]
        data["rate_scale"] = self.reading.rate_scale
        if self.trace is not None:
            data["trace"] = Path(self.trace).name
            data["trace_sha256"] = file_digest(self.trace)
            data["left_out"] = self.left_out()
            data |= {name: value for name, value in self._changed().items() if value is not None}
        return data

    @classmethod
    def from_dict(cls, data: object, server: EngineConfig, trace: str | None, where: str) -> "Source":
        """The source that `to_dict` wrote.

        Args:
            data: the JSON form, which has the name and the digest of a trace file, but not its place.
            server: what serves the requests.
            trace: the file, if there was one.
            where: what a message begins with.

        Raises:
            InputError: something else, or a trace that is missing, not asked for, or another one.
        """
        stored = picked(_Stored, data, where)
        if (stored.trace is None) is not (trace is None):
            asked = f"the trace {stored.trace} (--trace FILE)" if stored.trace else "no trace"
            raise InputError(f"{where}: expected {asked}, got {trace or 'none'}")
        if trace is not None and file_digest(trace) != stored.trace_sha256:
            raise InputError(f"{where}: expected a trace with digest {stored.trace_sha256}, got {trace}")
        kept = {own.name: getattr(stored, own.name) for own in fields(cls) if own.name not in ("trace", "reading")}
        return cls(trace=trace, reading=stored.reading(server), **kept)

    def _changed(self) -> dict[str, Any]:
        """What is read of the file, as far as it differs from the whole."""
        reading = self.reading
        return {
            "window_s": list(reading.window) if reading.windowed else None,
            "time_unit": reading.time_unit,
            "unservable": None if reading.unservable == AS_IT_IS.unservable else reading.unservable,
            "tokenizer": reading.tokenizer,
        }


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """What `Source.to_dict` writes, as it is read again."""

    trace: str | None
    workload: str
    synthetic_arrivals: bool
    num_requests: int | None
    prediction: str | None
    tiers: tuple[Tier, ...] = field(metadata={"read": parse_tiers})
    max_concurrency: int
    rate_scale: float
    trace_sha256: str | None = None
    window_s: tuple[float, float | None] = AS_IT_IS.window
    time_unit: TimeUnit | None = None
    unservable: Unservable = AS_IT_IS.unservable
    tokenizer: str | None = None

    def reading(self, server: EngineConfig) -> TraceOptions:
        """How the rows of the trace are read."""
        return TraceOptions(
            time_unit=self.time_unit,
            rate_scale=self.rate_scale,
            window=self.window_s,
            unservable=self.unservable,
            server=server,
            tokenizer=self.tokenizer,
        )
