"""Options that several commands share, and where the requests of a run come from."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro

from agents.policies import split_policies
from engine.config import EngineConfig
from engine.demand.closed import limited
from engine.demand.predictions import parse_channel
from engine.demand.requests import DEFAULT_TIERS, Requests, Tier
from engine.demand.tiers import parse_tiers
from engine.demand.trace_files import has_times, read_columns
from engine.demand.trace_options import TimeUnit, TraceOptions, Unservable, trace_options
from engine.demand.traces import read_trace, trace_lengths
from engine.demand.workload import BYTES_PER_REQUEST, parse_workload
from engine.device.latency import LatencyModel, load_profile
from engine.errors import InputError
from engine.fields import COUNT, RATE, SECONDS
from engine.files.reading import file_digest
from engine.machine import check_memory
from engine.runs.goodput import Goodput
from engine.server.policy import Policy

TierTexts = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
"""The option --tier, which is given once for each tier."""
DEFAULT_RATE = 1.6
DEFAULT_NUM_REQUESTS = 2000


@dataclass(frozen=True)
class Source:
    """Where the requests come from: a trace file or a synthetic workload."""

    trace: str | None = None
    """Trace file, or None."""
    workload: str = "poisson"
    """Workload spec; beside a trace the arrival process put on its lengths."""
    synthetic_arrivals: bool = True
    """Whether arrival times are drawn (a workload, a file without times, or a trace with its own workload)."""
    num_requests: int | None = None
    """Requests per run; None: every row of a file with recorded times, else DEFAULT_NUM_REQUESTS."""
    rate_scale: float = 1.0
    """Factor on recorded arrival rates."""
    prediction: str | None = None
    """Channel of length predictions for every policy that needs any; None: each its own."""
    reading: TraceOptions = field(default_factory=TraceOptions)
    """How the rows of the trace are read."""
    tokenizer: str | None = None
    """What counts the tokens of conversations: words, mistral, or a folder."""
    tiers: tuple[Tier, ...] = DEFAULT_TIERS
    """Service tiers with their shares and deadlines; each request's is drawn by share."""
    max_concurrency: int = 0
    """Most requests in flight (0: no limit)."""

    @property
    def closed_loop(self) -> str:
        """What limits the requests in flight, in a few words; "" for an open loop."""
        if self.max_concurrency:
            return f"at most {self.max_concurrency} requests in flight"
        workload = parse_workload(self.workload) if self.synthetic_arrivals else None
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
        return limited(self._open(rate, seed), self.max_concurrency)

    def _open(self, rate: float | None, seed: int) -> Requests:
        if self.trace is None:
            workload = parse_workload(self.workload, self.tiers)
            count = workload.num_requests if self.num_requests is None else self.num_requests
            return replace(workload, rate=_given(rate, workload.rate), num_requests=count).generate(seed)
        if self.synthetic_arrivals:
            lengths = trace_lengths(self.trace, tokenizer=self.tokenizer, options=self.reading)
            workload = replace(parse_workload(self.workload, self.tiers), lengths=lengths)
            count = DEFAULT_NUM_REQUESTS if self.num_requests is None else self.num_requests
            return replace(workload, rate=_given(rate, workload.rate), num_requests=count).generate(seed)
        return read_trace(
            self.trace,
            rate=rate,
            rate_scale=1.0 if rate is not None else self.rate_scale,
            num_requests=self.num_requests,
            seed=seed,
            tiers=self.tiers,
            options=self.reading,
        )

    def left_out(self) -> dict[str, int]:
        """Rows of the trace file that are not served, by reason; empty for a workload."""
        if self.trace is None:
            return {}
        limit = None if self.synthetic_arrivals else self.num_requests
        return read_columns(self.trace, self.reading, self.tokenizer, limit).left_out

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
        del data["reading"], data["tokenizer"]
        if self.trace is not None:
            data["trace"] = Path(self.trace).name
            data["trace_sha256"] = file_digest(self.trace)
            data["left_out"] = self.left_out()
            data |= {name: value for name, value in self._changed().items() if value is not None}
        return data

    def _changed(self) -> dict[str, Any]:
        """What is read of the file, as far as it differs from the whole."""
        reading, default = self.reading, TraceOptions()
        return {
            "window_s": [t if math.isfinite(t) else None for t in reading.window] if reading.windowed else None,
            "time_unit": reading.time_unit,
            "unservable": None if reading.unservable == default.unservable else reading.unservable,
            "tokenizer": self.tokenizer,
        }


def _given(value: float | None, default: float) -> float:
    """The value unless there is none; 0 is a value."""
    return default if value is None else value


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
class SourceOptions:
    """Options that say which requests to serve."""

    trace: str | None = None
    """Trace file: csv (lengths, Azure, BurstGPT), Mooncake jsonl, ShareGPT json or jsonl, results of `vllm bench serve
    --save-detailed`. Without it requests come from --workload."""
    workload: str | None = None
    """Workload such as poisson, gamma:cv=2 or burst:lengths=fixed:512,8 (see `llmsched workloads`); with
    --trace: arrival process for its lengths, instead of recorded times."""
    rate_scale: float = 1.0
    """Factor on the recorded arrival rate of a trace (0.5: half as many requests per second)."""
    num_requests: int | None = None
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
    max_concurrency: int | None = None
    """Most requests in flight, as `vllm bench serve --max-concurrency`: one that is due while so many are waits at the
    client and is sent when a place comes free; its TTFT counts from then. Users who think: --workload closed:..."""

    def source(self) -> Source:
        """The source that the options describe.

        Raises:
            InputError: options that exclude each other, or a file that cannot be read.
        """
        if self.num_requests is not None:
            COUNT.check(self.num_requests, "num_requests")
            check_memory(self.num_requests, BYTES_PER_REQUEST, "num_requests")
        if self.max_concurrency is not None:
            COUNT.check(self.max_concurrency, "max_concurrency")
        RATE.check(self.rate_scale, "rate_scale")
        reading = self._reading()
        recorded = self.trace is not None and self.workload is None and has_times(self.trace, self.tokenizer)
        if self.rate_scale != 1.0 and not recorded:
            raise InputError("rate_scale: expected a trace with recorded arrival times to scale (use --rate)")
        number = self.num_requests
        if self.trace is not None and not recorded:
            # Finds a workload that says more than how requests arrive.
            read_trace(
                self.trace,
                rate=DEFAULT_RATE,
                num_requests=1,
                arrivals=self.workload,
                options=reading,
                tokenizer=self.tokenizer,
            )
        if self.trace is None:
            given = self.workload or "poisson"
            if "num_requests=" not in given and given.partition(":")[0] != "toy":
                number = DEFAULT_NUM_REQUESTS if number is None else number
        prediction = None if self.prediction is None else parse_channel(self.prediction).spec
        workload = self.workload or "poisson"
        if self.max_concurrency is not None and not recorded:
            given_loop = Source(workload=workload).closed_loop
            if given_loop:
                raise InputError(f"max_concurrency: expected an open workload beside it, got {given_loop}")
        return Source(
            self.trace,
            workload,
            not recorded,
            number,
            self.rate_scale,
            prediction,
            reading,
            self.tokenizer,
            parse_tiers(self.tier, "tier"),
            self.max_concurrency or 0,
        )

    def _reading(self) -> TraceOptions:
        """How the trace is read; what is too long is said by the server of the same command."""
        server = getattr(self, "engine", None)
        given = {"window": self.window, "time_unit": self.time_unit, "tokenizer": self.tokenizer}
        for name, value in given.items():
            if self.trace is None and value is not None:
                raise InputError(f"{name}: expected a trace beside it, got none (use --trace)")
        options = trace_options(self.time_unit, self.window, self.unservable)
        return replace(options, server=server) if isinstance(server, EngineConfig) else options

    def loads(self, rate: float | None, rates: str | None) -> tuple[float | None, ...]:
        """The arrival rates to run, in requests/s; None stands for the recorded times.

        Raises:
            InputError: the options exclude each other, or the rates cannot be read.
        """
        source = self.source()
        if rate is not None and rates is not None:
            raise InputError("rate, rates: expected one of them, got both")
        if (rate is not None or rates is not None) and self.rate_scale != 1.0:
            raise InputError("rate, rate_scale: expected one of them, got both")
        if "rate=" in (self.workload or "").replace("end_rate=", "") and (rate is not None or rates is not None):
            raise InputError(f"rate: expected once, got it in the workload {self.workload!r} and as an option")
        if source.synthetic_arrivals and parse_workload(source.workload).is_closed:
            if rate is not None or rates is not None:
                raise InputError(f"rate: expected none for a closed loop, which has {source.closed_loop}; got one")
            return (None,)
        if rates is not None:
            return parse_rates(rates)
        if rate is not None:
            return (RATE.check(rate, "rate"),)
        if not source.synthetic_arrivals:
            return (None,)
        if self.trace is not None:
            return (None,) if source.workload.startswith("burst") else (DEFAULT_RATE,)
        return (parse_workload(source.workload).rate,)


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options that say what serves them."""

    profile: str = "rtx6000ada-mistral-7b"
    """Hardware profile: a shipped name or a .json file; with :speed=2 behind it the same device twice as fast."""
    semantics: Literal["default", "reference"] = "default"
    """`default`: a real engine, the prompt's last iteration yields token 1; `reference`: the public SLAI code."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Limits and semantics of the server; what is given here wins over --semantics."""
    horizon: float = math.inf
    """Stop the clock at this time, s; what is not served then counts as unfinished."""
    warmup: float = 0.0
    """Requests that arrive before this time (s) are served but not counted."""

    def preset(self) -> Self | None:
        """The same options with the defaults of the chosen semantics, if they differ from those of the class."""
        default = EngineConfig.reference()
        if self.semantics == "default" or all(f.default == getattr(default, f.name) for f in fields(EngineConfig)):
            return None
        return replace(type(self)(), engine=default)

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
class ComparisonOptions(SourceOptions, ServerOptions, TableOptions, ProgressOptions):
    """Options of the commands that compare policies over seeds."""

    policies: str = "slai,sarathi"
    """Policies, comma separated: baselines (slai:offset=3), random, folders of trained policies, classes of your own
    (module:Class or path/file.py:Class, perhaps with parameters: mine.py:Mine:k=3,j=4)."""
    seeds: int = 3
    """Seeds 0 ... N-1, each a common trace for all policies."""
    reference: str | None = None
    """Policy that the others are compared with (default: sarathi if it is there, else the first)."""
    workers: int | None = None
    """Processes (default: one per core); the result does not depend on it."""
    json: Path | None = None
    """Also write the whole result to this file."""
    resume: bool = False
    """Go on with an interrupted run of the same configuration."""

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
