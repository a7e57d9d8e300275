"""Options that several commands share."""

import math
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro

from agents.policies import split_policies
from agents.source import DEFAULT_NUM_REQUESTS, DEFAULT_RATE, Source
from agents.work.processes import Backend
from engine.config import EngineConfig
from engine.demand.predictions import parse_channel
from engine.demand.tiers import parse_tiers
from engine.demand.trace_files import has_times
from engine.demand.trace_options import AS_IT_IS, TimeUnit, TraceOptions, Unservable, parse_window
from engine.demand.traces import read_trace
from engine.demand.workload import BYTES_PER_REQUEST, fields_said
from engine.device.latency import DEFAULT_PROFILE, LatencyModel, load_profile
from engine.device.memory import server_of
from engine.errors import InputError
from engine.fields import limits_of, types_of
from engine.machine import check_memory
from engine.ranges import RATE, SECONDS, Count, Rate, Seconds, whole
from engine.runs.goodput import Goodput
from engine.spec import Spec

TierTexts = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""The option --tier, which is given once for each tier."""
UpToMillion = Annotated[int, whole(1, 10**6)]
"""A number of seeds, rounds, pairs or processes."""
DEFAULT_WORKLOAD = "poisson"
"""What is served where nobody says."""


def check_options(command: object) -> None:
    """Check the numbers among options against the ranges that their fields declare; None says nothing.

    Raises:
        InputError: one is out of its range, or asks for more requests than there is memory for.
    """
    for name, kind in types_of(type(command), with_ranges=True).items():
        value, limits = getattr(command, name), limits_of(kind)
        if limits and value is not None:
            limits.check(value, name)
            if name == "num_requests":
                check_memory(value, BYTES_PER_REQUEST, name)


def parse_rates(text: str, name: str = "rates") -> tuple[float, ...]:
    """Rates (or what `name` says) from `1.6`, `1.0,1.4,1.8` or `1.0:2.0:0.2` (both ends included).

    Raises:
        InputError: not such a list, a rate that is not positive, or a step that leads nowhere.
    """
    expected = f"{name}: expected numbers > 0 as a list (1.0,1.4) or start:end:step (1.0:2.0:0.2)"
    try:
        numbers = [float(RATE.parse(part, name)) for part in text.replace(":", ",").split(",")]
    except InputError:
        raise InputError(f"{expected}, got {text!r}") from None
    if ":" not in text:
        return tuple(numbers)
    if "," in text or len(numbers) != 3 or numbers[1] < numbers[0]:
        raise InputError(f"{expected}, got {text!r}")
    start, end, step = numbers
    steps = (end - start) / step
    if not steps < 1000:
        raise InputError(f"{name}: expected at most 1000 of them, got {steps + 1:.6g} from {text!r}")
    return tuple(round(start + k * step, 10) for k in range(math.floor(steps + 1e-9) + 1))


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Options of the commands that print tables."""

    wide: bool = False
    """Show every column of the tables: what has no room beside the others stands below them. Else a narrow terminal
    shows fewer columns, and a line says which are left out. What is not a terminal always gets all of them."""


@dataclass(frozen=True, kw_only=True)
class ProgressOptions:
    """Options of the commands that take more than a moment."""

    progress: bool = True
    """Show progress bars on stderr, if that is a terminal."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Options of the commands whose runs do not wait for each other."""

    workers: UpToMillion | None = None
    """Processes (default: one per core), or runs at once on a Ray cluster (default: as many as there is room for); the
    result does not depend on it."""
    backend: Literal["processes", "ray"] = "processes"
    """What does the runs: processes of this machine, or a Ray cluster (extra: ray), on which a run whose machine is
    lost is done again elsewhere. The result does not depend on it."""
    address: str | None = None
    """The Ray cluster: HOST:PORT of its head, auto (that of RAY_ADDRESS, else the one that runs on this machine; the
    default), or local (one on this machine for this command only)."""

    def place_of_work(self) -> Backend | None:
        """What does the runs in the place of processes of this machine; None: they do.

        Raises:
            InputError: an address without Ray, or no Ray.
        """
        if self.backend == "ray":
            from agents.work.ray_backend import Ray

            return Ray(self.address or "auto")
        if self.address is not None:
            raise InputError("address: expected --backend ray beside it, got none")
        return None


@dataclass(frozen=True, kw_only=True)
class RunsOptions(TableOptions, ProgressOptions, WorkerOptions):
    """Options of the commands that keep finished runs in a folder, show tables and write a result."""

    resume: bool = False
    """Go on with an interrupted run of the same configuration."""
    json: Path | None = None
    """Also write the whole result to this file."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of the commands that also write an HTML report into their folder."""

    report: Path | None = None
    """Put the HTML report here (default: report.html in OUT)."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options that say which requests to serve."""

    trace: str | None = None
    """Trace file: csv (lengths, Azure, BurstGPT), Mooncake jsonl, ShareGPT json or jsonl, results of `vllm bench serve
    --save-detailed`, vLLM's request log or Prometheus text. Without it requests come from --workload."""
    workload: str | None = None
    """Workload such as poisson, gamma:cv=2 or burst:lengths=fixed:512,8 (see `llmsched workloads`); with
    --trace: arrival process for its lengths, instead of recorded times."""
    rate_scale: Rate = 1.0
    """Factor on the recorded arrival rate of a trace (0.5: half as many requests per second)."""
    num_requests: Count | None = None
    """Requests per run (default: every row of a trace with recorded times, else 2000)."""
    window: str | None = None
    """Only the part START:END of a trace, seconds from its first request; either may be left out (600:, :3600)."""
    time_unit: TimeUnit | None = None
    """Unit of a trace's times (default: that of its format; a format without a known unit is refused)."""
    unservable: Unservable = "refuse"
    """Rows of a trace that cannot be served (too long, without tokens, out of order): refuse the file with their
    number, or skip them, counted by reason (rows out of order are put in order)."""
    tokenizer: str | None = None
    """What counts the tokens of conversations: words (those between white space, about 1.3 tokens each in English),
    mistral (if its tokenizer is in the cache of Hugging Face), or a folder with a tokenizer.json."""
    prediction: str | None = None
    """Channel of output-length predictions, such as oracle or rank:tau=0.52 (see `llmsched workloads`), for all
    policies that need any (default: each policy's own, see `llmsched policies`)."""
    tier: TierTexts = ()
    """A service tier, once for each: name=paid,share=0.05,tbt=0.1,ttft=2 (seconds), with weight=1 and strict=yes or no
    if need be (default: strict 5 % at 0.1 s between tokens, relaxed 95 % at 0.5 s; `engine.demand.tiers`)."""
    max_concurrency: Count | None = None
    """Most requests in flight, as `vllm bench serve --max-concurrency`: one that is due while so many are waits at the
    client and is sent when a place comes free; its TTFT counts from then. Users who think: --workload closed:..."""

    def _check_arrivals(self, trace: str, reading: TraceOptions) -> None:
        """Find a workload that says more than how the requests of a trace arrive."""
        read_trace(trace, reading, rate=DEFAULT_RATE, num_requests=1, arrivals=self.workload)

    def source(self) -> Source:
        """The source that the options describe.

        Raises:
            InputError: options that exclude each other, or a file that cannot be read.
        """
        check_options(self)
        reading = self._reading()
        recorded = self.trace is not None and self.workload is None and has_times(self.trace, reading)
        if self.rate_scale != 1.0 and not recorded:
            raise InputError("rate_scale: expected a trace with recorded arrival times to scale (use --rate)")
        if self.trace is not None and not recorded:
            self._check_arrivals(self.trace, reading)
        source = Source(
            trace=self.trace,
            workload=self.workload or DEFAULT_WORKLOAD,
            synthetic_arrivals=not recorded,
            num_requests=self._count(),
            prediction=None if self.prediction is None else parse_channel(self.prediction).spec,
            reading=reading,
            tiers=parse_tiers(self.tier, "tier"),
        )
        return source if self.max_concurrency is None else self._with_limit(source)

    def _with_limit(self, source: Source) -> Source:
        """The source with a limit on the requests in flight, if it has none of its own."""
        if source.closed_loop:
            raise InputError(f"max_concurrency: expected an open workload beside it, got {source.closed_loop}")
        return replace(source, max_concurrency=self.max_concurrency or 0)

    def _count(self) -> int | None:
        """Requests per run; None: as many as the file has, or as the workload says."""
        workload = self.workload or DEFAULT_WORKLOAD
        if self.num_requests is not None and "num_requests" in Spec.parse(workload).given:
            raise InputError(f"num_requests: expected once, got it in the workload {workload!r} and as an option")
        if self.num_requests is None and self.trace is None:
            return None if "num_requests" in fields_said(workload) else DEFAULT_NUM_REQUESTS
        return self.num_requests

    def _reading(self) -> TraceOptions:
        """How the trace is read; what is too long is said by the server of the same command."""
        server = getattr(self, "engine", None)
        given = {"window": self.window, "time_unit": self.time_unit, "tokenizer": self.tokenizer}
        for name, value in given.items():
            if self.trace is None and value is not None:
                raise InputError(f"{name}: expected a trace beside it, got none (use --trace)")
        return TraceOptions(
            time_unit=self.time_unit,
            rate_scale=self.rate_scale,
            window=AS_IT_IS.window if self.window is None else parse_window(self.window),
            unservable=self.unservable,
            server=server if isinstance(server, EngineConfig) else None,
            tokenizer=self.tokenizer,
        )

    def loads(self, rate: float | None, rates: str | None) -> tuple[float | None, ...]:
        """The arrival rates to run, in requests/s; None stands for the recorded times.

        Raises:
            InputError: the options exclude each other, or the rates cannot be read.
        """
        source = self.source()
        if rate is not None and rates is not None:
            raise InputError("rate, rates: expected one of them, got both")
        if rate is None and rates is None:
            return (source.usual_rate,)
        self._check_rate(source)
        return (RATE.check(rate, "rate"),) if rates is None else parse_rates(rates)

    def _check_rate(self, source: Source) -> None:
        """Whether requests of this source may be given a rate."""
        if self.rate_scale != 1.0:
            raise InputError("rate, rate_scale: expected one of them, got both")
        if "rate" in Spec.parse(source.workload).given:
            raise InputError(f"rate: expected once, got it in the workload {self.workload!r} and as an option")
        workload = source.drawn_workload
        if workload is not None and workload.is_closed:
            raise InputError(f"rate: expected none for a closed loop, which has {source.closed_loop}; got one")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options that say what serves them."""

    profile: str = DEFAULT_PROFILE
    """Hardware profile: a shipped name or a .json file; with :speed=2 behind it the same device twice as fast, with
    :mixed=2 one on which a KV token of a decode costs twice as much beside a prompt, with :eager=0.03 one whose host
    takes 30 ms to launch a batch that no CUDA graph covers."""
    semantics: Literal["default", "reference"] = "default"
    """`default`: a real engine, the prompt's last iteration yields token 1; `reference`: the public SLAI code."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Limits and semantics of the server; what is given here wins over --semantics and over the profile's memory."""
    horizon: float = math.inf
    """Stop the clock at this time, s; what is not served then counts as unfinished."""
    warmup: Seconds = 0.0
    """Requests that arrive before this time (s) are served but not counted."""

    def preset(self) -> Self | None:
        """The same options with the defaults of the semantics and the device, if they differ from those of the class.

        Raises:
            InputError: no such profile, or one whose memory is impossible.
        """
        engine = server_of(load_profile(self.profile), self.usual_server())
        if engine == EngineConfig():
            return None
        # What is required has no default, and keeps what was given.
        defaults = {one.name: one.default for one in fields(self) if one.default is not MISSING}
        return replace(self, **(defaults | {"engine": engine}))

    def usual_server(self) -> EngineConfig:
        """The server of the command where nobody says anything, before the device says its memory."""
        return EngineConfig.reference() if self.semantics == "reference" else EngineConfig()

    def model(self) -> LatencyModel:
        """The latency model of the profile.

        Raises:
            InputError: no such profile; horizon or warm-up out of range.
        """
        if not self.horizon > 0.0:
            raise InputError(f"horizon: expected seconds > 0, got {self.horizon}")
        SECONDS.check(self.warmup, "warmup")
        return load_profile(self.profile)


@dataclass(frozen=True, kw_only=True)
class GoodputOptions:
    """Limits of one more kind of goodput, that of `vllm bench serve`."""

    goodput: tuple[str, ...] = ()
    """Also count the requests per second within these limits in ms, as `vllm bench serve` does: ttft:200 tpot:50
    e2el:900 (any of them; tpot is the mean over a request's tokens)."""

    def limits(self) -> Goodput | None:
        """The limits, None without any.

        Raises:
            InputError: another name, a name twice, or no number of milliseconds.
        """
        return Goodput.parse(self.goodput) if self.goodput else None


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(SourceOptions, ServerOptions, RunsOptions):
    """Options of the commands that compare policies over seeds."""

    policies: str = "slai,sarathi"
    """Policies, comma separated: baselines (slai:offset=3), random, folders of trained policies, classes of your own
    (module:Class or path/file.py:Class, perhaps with parameters: mine.py:Mine:k=3,j=4)."""
    seeds: UpToMillion = 3
    """Seeds 0 ... N-1, each a common trace for all policies."""
    reference: str | None = None
    """Policy that the others are compared with (default: sarathi if it is there, else the first)."""

    def setup(self) -> dict[str, Any]:
        """The arguments of `agents.evaluation.setup.Setup`.

        Raises:
            InputError: options that do not fit.
        """
        policies = split_policies(self.policies)
        default = "sarathi" if "sarathi" in policies else policies[0]
        return {
            "policies": policies,
            "source": self.source(),
            "seeds": self.seeds,
            "reference": self.reference or default,
            "profile": self.model(),
            "config": self.engine,
            "horizon_s": self.horizon,
            "warmup_s": self.warmup,
        }
