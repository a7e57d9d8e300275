"""Options that several commands share, and where the requests of a run come from."""

import hashlib
import math
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from agents.resolve import split_policies
from engine.config import EngineConfig
from engine.errors import InputError
from engine.goodput import Goodput
from engine.latency import LatencyModel, load_profile
from engine.length_models import EmpiricalLengths
from engine.policy import Policy
from engine.predictions import parse_channel
from engine.requests import Requests
from engine.traces import read_trace, trace_lengths
from engine.workload import parse_workload

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

    def channel(self, policy: Policy) -> str:
        """The channel of a policy's predictions in this run, "" if it needs none."""
        return (self.prediction or policy.channel) if policy.channel else ""

    def requests(self, rate: float | None, seed: int) -> Requests:
        """The trace of one load and seed; the same arguments give the same requests bit for bit.

        Args:
            rate: arrival rate in requests/s; None keeps recorded times (times rate_scale).
            seed: draws everything random.

        Raises:
            InputError: the file or the arguments do not fit.
        """
        if self.trace is None:
            workload = parse_workload(self.workload)
            count = self.num_requests or workload.num_requests
            return replace(workload, rate=rate or workload.rate, num_requests=count).generate(seed)
        if self.synthetic_arrivals:
            # What read_trace does, with the file parsed once for all loads and seeds.
            workload = replace(parse_workload(self.workload), lengths=_lengths(self.trace))
            count = self.num_requests or DEFAULT_NUM_REQUESTS
            return replace(workload, rate=rate or workload.rate, num_requests=count).generate(seed)
        scale = 1.0 if rate is not None else self.rate_scale
        return read_trace(self.trace, rate=rate, rate_scale=scale, num_requests=self.num_requests, seed=seed)

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
        if self.trace is not None:
            data["trace"] = Path(self.trace).name
            data["trace_sha256"] = file_digest(self.trace)
        return data


@lru_cache(maxsize=2)
def _lengths(trace: str) -> EmpiricalLengths:
    return trace_lengths(trace)


@lru_cache(maxsize=4)
def file_digest(path: str) -> str:
    """SHA-256 of a file, 16 hexadecimal digits.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from None


def parse_rates(text: str) -> tuple[float, ...]:
    """Rates from `1.6`, `1.0,1.4,1.8` or `1.0:2.0:0.2` (both ends included).

    Raises:
        InputError: not such a list, a rate that is not positive, or a step that leads nowhere.
    """
    expected = "rates: expected numbers > 0 as a list (1.0,1.4) or start:end:step (1.0:2.0:0.2)"
    try:
        numbers = [float(part) for part in text.replace(":", ",").split(",")]
    except ValueError:
        raise InputError(f"{expected}, got {text!r}") from None
    if not all(math.isfinite(number) and number > 0.0 for number in numbers):
        raise InputError(f"{expected}, got {text!r}")
    if ":" not in text:
        return tuple(numbers)
    if "," in text or len(numbers) != 3 or numbers[1] < numbers[0]:
        raise InputError(f"{expected}, got {text!r}")
    start, end, step = numbers
    count = math.floor((end - start) / step + 1e-9) + 1
    if count > 1000:
        raise InputError(f"rates: expected at most 1000 of them, got {count} from {text!r}")
    return tuple(round(start + k * step, 10) for k in range(count))


@lru_cache(maxsize=4)
def _has_recorded_times(trace: str) -> bool:
    try:
        # Without a rate only recorded times can be used.
        read_trace(trace, num_requests=1)
    except InputError as error:
        if str(error).startswith("rate:"):
            return False
        raise
    return True


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Options of the commands that print tables."""

    wide: bool = False
    """Show every column of the tables: what has no room beside the others stands below them. Else a narrow terminal
    shows fewer columns, and a line says which are left out. What is not a terminal always gets all of them."""


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options that say which requests to serve."""

    trace: str | None = None
    """Trace file: csv (lengths, Azure, BurstGPT), Mooncake jsonl. Without it requests come from --workload."""
    workload: str | None = None
    """Workload such as poisson, gamma:cv=2 or burst:lengths=fixed:512,8 (see `llmsched workloads`); with
    --trace: arrival process for its lengths, instead of recorded times."""
    rate_scale: float = 1.0
    """Factor on the recorded arrival rate of a trace (0.5: half as many requests per second)."""
    num_requests: int | None = None
    """Requests per run (default: every row of a trace with recorded times, else 2000)."""
    prediction: str | None = None
    """Channel of output-length predictions, such as oracle or rank:tau=0.52 (see `llmsched workloads`), for all
    policies that need any (default: each policy's own, see `llmsched policies`)."""

    def source(self) -> Source:
        """The source that the options describe.

        Raises:
            InputError: options that exclude each other, or a file that cannot be read.
        """
        if self.num_requests is not None and self.num_requests < 1:
            raise InputError(f"num_requests: expected a whole number >= 1, got {self.num_requests}")
        if not (math.isfinite(self.rate_scale) and self.rate_scale > 0.0):
            raise InputError(f"rate_scale: expected a finite factor > 0, got {self.rate_scale}")
        recorded = self.trace is not None and self.workload is None and _has_recorded_times(self.trace)
        if self.rate_scale != 1.0 and not recorded:
            raise InputError("rate_scale: expected a trace with recorded arrival times to scale (use --rate)")
        number = self.num_requests
        if self.trace is not None and not recorded:
            # Finds a workload that says more than how requests arrive.
            read_trace(self.trace, rate=DEFAULT_RATE, num_requests=1, arrivals=self.workload)
        if self.trace is None:
            given = self.workload or "poisson"
            if "num_requests=" not in given and given.partition(":")[0] != "toy":
                number = number or DEFAULT_NUM_REQUESTS
        prediction = None if self.prediction is None else parse_channel(self.prediction).spec
        return Source(self.trace, self.workload or "poisson", not recorded, number, self.rate_scale, prediction)

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
        if "rate=" in (self.workload or "").replace("end_rate=", "") and (rate or rates):
            raise InputError(f"rate: expected once, got it in the workload {self.workload!r} and as an option")
        if rates is not None:
            return parse_rates(rates)
        if rate is not None:
            if not (math.isfinite(rate) and rate > 0.0):
                raise InputError(f"rate: expected a finite number of requests/s > 0, got {rate}")
            return (rate,)
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
        if not 0.0 <= self.warmup < math.inf:
            raise InputError(f"warmup: expected seconds >= 0, got {self.warmup}")
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
class ComparisonOptions(SourceOptions, ServerOptions, TableOptions):
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
