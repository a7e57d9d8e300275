"""Workloads: arrival process x length model x tiers -> `Requests`, drawn as a whole from one seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from engine.demand.arrivals import FloatArray, parse_think, think_times
from engine.demand.closed import Loop, soonest
from engine.demand.length_models import LENGTH_FORMS, EmpiricalLengths, FixedLengths, parse_lengths, table_names
from engine.demand.lengths import LengthModel
from engine.demand.processes import PROCESSES, ArrivalName, Process
from engine.demand.requests import DEFAULT_TIERS, Requests, Tier, check_shares, draw_tiers, seeded
from engine.demand.tiers import parse_tiers
from engine.demand.trace_files import read_columns
from engine.demand.trace_options import TimeUnit, TraceOptions, Unservable
from engine.demand.trace_rows import TraceColumns
from engine.errors import InputError
from engine.fields import checked, types_of
from engine.files.reading import file_digest, kind_of
from engine.machine import check_memory
from engine.ranges import MOST_SECONDS, Count, Rate, Readable, number, whole
from engine.spec import Spec

if TYPE_CHECKING:
    Lengths = str | LengthModel
else:
    # A command line made from this class can only offer the string.
    Lengths = str

TRACE_FIELDS = ("trace", "trace_sha256", "time_unit", "unservable", "max_tokens")
"""Fields that mean something beside a trace only."""
BYTES_PER_REQUEST = 1000
"""Memory that serving one request takes at the least, for its arrays, its state and its record."""
LEAST_GAP_CAP = 0.01
"""Below it hardly a gap would be left as drawn."""
MOST_PERIODS = 10_000_000
"""Busy and quiet periods that on-off arrivals may need."""
Period = Annotated[float, number(0.0, MOST_SECONDS, above=True)]
Factor = Annotated[float, number(0.0, 1e6)]


@dataclass(frozen=True)
class Workload:
    """What to draw: how many requests, when they arrive, how long they are, who sends them.

    Lengths are drawn first, then tiers, then arrivals; so the same seed gives the same lengths and tiers at
    every rate and for every arrival process, and arrival times that only stretch with the rate.

    The toy workload has a known answer. Requests arrive at 0, 1/rate, 2/rate, ... with P prompt and O
    output tokens each, all in the tier with the largest share. As long as one request is served within
    1/rate seconds, each is alone on the server: its TTFT is the sum of its ceil(P / budget) prefill
    iterations, and its end-to-end time that sum plus O - 1 decode iterations, the same for every request up
    to the rounding of the clock.

    Raises:
        InputError: a field is out of range, or a name is unknown (lists the known ones).
    """

    rate: Rate = 1.6
    """Mean arrival rate (requests/s); onoff and step scale it by factors, ramp starts at it, burst and recorded
    ignore it."""
    num_requests: Count = 512
    """Number of requests."""
    arrivals: ArrivalName = "poisson"
    """Arrival process."""
    lengths: Lengths = "openchat_sharegpt4"
    """Prompt and output lengths: a shipped table (openchat_sharegpt4, azure2023_conv, azure2023_code),
    fixed:PROMPT,OUTPUT, lognormal:PMU,PSIGMA,OMU,OSIGMA or FILE.json; in Python also a length model."""
    cv: Annotated[float, number(1e-6, 100.0)] = 1.0
    """Coefficient of variation of the gaps (no unit), for gamma."""
    gap_cap: Factor = 0.0
    """Largest gap in mean gaps, 0 for none; the public SLAI code uses 3, which raises the rate by 5.2 %."""
    off_factor: Factor = 0.5
    """Rate in the quiet state as a multiple of rate, for onoff."""
    on_factor: Factor = 2.0
    """Rate in the busy state as a multiple of rate, for onoff."""
    off_mean_s: Period = 60.0
    """Mean length of a quiet period (s), for onoff."""
    on_mean_s: Period = 30.0
    """Mean length of a busy period (s), for onoff."""
    ramp_end_rate: Rate = 3.2
    """Arrival rate when the last request is due (requests/s), for ramp."""
    step_factor: Annotated[float, number(0.0, 1e6, above=True)] = 1.5
    """Rate in a step as a multiple of rate, for step."""
    step_s: Period = 30.0
    """Length of a step (s), for step."""
    step_every_s: Period = 300.0
    """Time from the start of one step to that of the next (s), the first at step_every_s - step_s, for step."""
    max_concurrency: Annotated[int, whole(0)] = 0
    """Most requests in flight (0: no limit), as `vllm bench serve --max-concurrency`: one that is due while so many are
    waits at the client, is sent when a place comes free, and its times count from then. Not for closed."""
    concurrency: Count = 64
    """Users, for closed."""
    think: Annotated[str, Readable(parse_think)] = "exp:2"
    """Think time of users between two requests, for closed: exp:MEAN or fixed:SECONDS. It comes before the first
    request, too."""
    tiers: tuple[Tier, ...] = dataclasses.field(default=DEFAULT_TIERS, metadata={"read": parse_tiers})
    """Service tiers with their shares (fractions that sum to 1)."""
    trace: str = ""
    """Trace file whose lengths are drawn instead of those of `lengths`; with recorded arrivals num_requests of its
    rows one after the other, at their times, from a random row on (after the last the first, one mean gap later)."""
    trace_sha256: str = ""
    """First 16 digits of the SHA-256 that the trace file must have; empty: any."""
    time_unit: TimeUnit | None = None
    """Unit of the trace's times (default: that of its format)."""
    unservable: Unservable = "refuse"
    """Rows of the trace that cannot be served: refuse the file, or skip them."""
    max_tokens: Annotated[int, whole(0)] = 0
    """Longest prompt + output of the trace that can be served (tokens); 0: no limit, in an environment its server's."""

    def __repr__(self) -> str:
        """What differs from the default workload, as it would be written."""
        values = ((f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self))
        return f"Workload({', '.join(f'{name}={value!r}' for name, value, default in values if value != default)})"

    def __post_init__(self) -> None:
        """Check every field."""
        if self.arrivals not in workload_names():
            raise InputError(f"arrivals: expected one of {', '.join(workload_names())}; got {self.arrivals!r}")
        checked(self, "", untyped=("lengths",))
        check_memory(self.num_requests, BYTES_PER_REQUEST, "num_requests")
        check_shares(self.tiers)
        self._check_arrivals()
        if not isinstance(self.lengths, str) and not hasattr(self.lengths, "draw"):
            raise InputError(f"lengths: expected a name or a length model, got {kind_of(self.lengths)}")
        if not self.trace:  # a trace is read when requests are drawn: who only describes the workload need not have it
            self._check_lengths()

    def _check_arrivals(self) -> None:
        """What fields of arrivals have to do with each other."""
        if self.is_closed and self.max_concurrency:
            raise InputError(
                f"max_concurrency: expected 0 for closed, whose users are its limit, got {self.max_concurrency}"
            )
        if 0.0 < self.gap_cap < LEAST_GAP_CAP:
            raise InputError(f"gap_cap: expected 0 or a number >= {LEAST_GAP_CAP}, got {self.gap_cap!r}")
        self._check_changes()
        if self.arrivals == "recorded" and not self.trace:
            raise InputError("trace: expected a trace file for recorded arrivals, got none")
        if self.arrivals == "onoff" and not self.trace:
            self._check_periods()

    def _check_changes(self) -> None:
        """A rate that changes is not always 0, and a step ends before the next one."""
        if self.off_factor == 0.0 and self.on_factor == 0.0:
            raise InputError("off_factor, on_factor: expected one of them above 0, got 0 for both")
        if self.step_s >= self.step_every_s:
            raise InputError(f"step_s: expected less than step_every_s ({self.step_every_s:g}), got {self.step_s:g}")

    def _check_lengths(self) -> None:
        """There is such a length model; the toy's is fixed."""
        model = self.length_model
        if self.arrivals == "toy" and not isinstance(model, FixedLengths):
            raise InputError(f"lengths: expected fixed:PROMPT,OUTPUT for toy arrivals, got {model.description}")

    def _check_periods(self) -> None:
        """Periods so short that there would be many for each request are not drawn one by one."""
        inside = self.rate * (self.off_factor * self.off_mean_s + self.on_factor * self.on_mean_s)
        if self.num_requests > MOST_PERIODS * inside:
            raise InputError(
                f"off_mean_s, on_mean_s: expected periods of which {self.num_requests} requests at {self.rate:g}/s "
                f"need at most {MOST_PERIODS}, got {self.off_mean_s:g} and {self.on_mean_s:g} s"
            )

    @property
    def length_model(self) -> LengthModel:
        """The length model that `lengths` is or names; with a trace, its rows."""
        if self.trace:
            columns = self.columns()
            return EmpiricalLengths(columns.prompt, columns.output, f"{Path(self.trace).name} ({columns.note})")
        return parse_lengths(self.lengths) if isinstance(self.lengths, str) else self.lengths

    @property
    def description(self) -> str:
        """One line for reports: process, rate, number and lengths."""
        process = self.process.describe(self)
        if loop := self._loop(np.zeros(0)):
            process = ", ".join(filter(None, (process, loop.description)))
        cap = f", gaps up to {self.gap_cap:g} means" if self.gap_cap and "gap_cap" in self.process.keys else ""
        return f"{self.num_requests} requests, {process}{cap}, {self.length_model.description}"

    @property
    def process(self) -> Process:
        """The arrival process that `arrivals` names."""
        return PROCESSES[self.arrivals]

    @property
    def is_closed(self) -> bool:
        """Whether users set the rate, who think between their requests."""
        return self.arrivals == "closed"

    def _loop(self, think: FloatArray) -> Loop | None:
        if self.is_closed:
            kind, mean = parse_think(self.think)
            return Loop(self.concurrency, think, f"{'exponential, mean ' if kind == 'exp' else ''}{mean:g} s")
        return Loop(self.max_concurrency) if self.max_concurrency else None

    def generate(self, seed: int | np.random.Generator) -> Requests:
        """Draw the requests; the same seed gives the same requests, bit for bit.

        Args:
            seed: a whole number >= 0, or a generator, which is then advanced.

        Raises:
            InputError: the seed is negative or not a whole number.
        """
        rng = seeded(seed)
        n = self.num_requests
        if self.arrivals == "recorded":
            return self._recorded(rng, "" if isinstance(seed, np.random.Generator) else f", seed {seed}")
        prompt, output = self.length_model.draw(rng, n)
        tier = None if self.arrivals == "toy" else draw_tiers(rng, n, self.tiers)
        label = "" if isinstance(seed, np.random.Generator) else f", seed {seed}"
        with np.errstate(over="ignore"):  # `Requests` refuses times that are not finite
            loop = self._loop(think_times(rng, n, self.think) if self.is_closed else np.zeros(0))
            times = soonest(loop) if loop and self.is_closed else self.process.times(self, rng)
        source = self.description + label
        return Requests.create(times, prompt, output, tier, tiers=self.tiers, source=source, loop=loop)

    def columns(self) -> TraceColumns:
        """The requests in the trace file.

        Raises:
            InputError: it cannot be read, or is not the file that it was.
        """
        if self.trace_sha256 and file_digest(self.trace) != self.trace_sha256:
            found = file_digest(self.trace)
            raise InputError(f"{self.trace}: expected the trace with SHA-256 {self.trace_sha256}..., got {found}...")
        options = TraceOptions(time_unit=self.time_unit, unservable=self.unservable, max_tokens=self.max_tokens)
        return read_columns(self.trace, options)

    def _recorded(self, rng: np.random.Generator, label: str) -> Requests:
        """Rows of the trace from a random one on, tiers drawn."""
        columns = self.columns()
        if columns.arrival is None:
            raise InputError(f"{self.trace}: expected a trace with arrival times for recorded arrivals, got none")
        rows, n = len(columns.prompt), self.num_requests
        lap = float(columns.arrival[-1]) * rows / (rows - 1) if rows > 1 else 0.0
        at = int(rng.integers(rows)) + np.arange(n)
        times = columns.arrival[at % rows] + lap * (at // rows)
        tier = draw_tiers(rng, n, self.tiers)
        chosen, source = at % rows, f"{self.description}{label}"
        lengths, loop = (columns.prompt[chosen], columns.output[chosen]), self._loop(np.zeros(0))
        return Requests.create(times - times[0], *lengths, tier, tiers=self.tiers, source=source, loop=loop)


def workload_names() -> tuple[str, ...]:
    """Return the names of the arrival processes, as spec strings begin."""
    return tuple(PROCESSES)


def workload_descriptions() -> dict[str, str]:
    """Return one line for each arrival process, with the keys that its spec string takes."""
    return {name: f"{process.about} (keys: {', '.join(process.keys)})" for name, process in PROCESSES.items()}


def length_descriptions() -> dict[str, str]:
    """Return one line for each shipped length table and each form of length model."""
    tables = {name: parse_lengths(name).description for name in table_names()}
    return tables | LENGTH_FORMS


def fields_said(spec: str) -> frozenset[str]:
    """Fields of a workload that a spec says something about: those it gives, and those that its name alone sets."""
    parsed = Spec.parse(spec)
    process = PROCESSES.get(parsed.name)
    return parsed.given | frozenset(process.defaults if process else ())


def parse_workload(spec: str, tiers: tuple[Tier, ...] = DEFAULT_TIERS) -> Workload:
    """Return the workload that a spec string describes, such as `gamma:rate=1.6,cv=2,lengths=fixed:512,8`.

    The string is the name of an arrival process, alone or followed by a colon and key=value pairs. A part
    without an equals sign continues the value before it. `toy` alone is complete: 8 requests of 512 + 8
    tokens, 2 s apart.

    Raises:
        InputError: an unknown name or key (lists the known ones), a key given twice, or a bad value.
    """
    parsed = Spec.parse(spec)
    if parsed.name not in PROCESSES:
        raise InputError(f"workload: expected one of {', '.join(workload_names())}; got {parsed.name!r}")
    process, types = PROCESSES[parsed.name], types_of(Workload, with_ranges=True)
    given = parsed.values(f"workload {spec!r}", {key: types[key] for key in process.keys}, commas=True)
    return Workload(**{**process.defaults, **given, "arrivals": parsed.name, "tiers": tiers})
