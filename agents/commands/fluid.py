"""`llmsched fluid`: `engine.device.fluid` for a workload and a profile, and the quotas that follow."""

from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from agents.options import ServerOptions, SourceOptions, TableOptions
from agents.reporting.grid import Grid, Head, Part, figure, print_lines, show, terminal_console
from agents.work.files import check_writable, write_json
from engine.demand.requests import Requests
from engine.device import fluid
from engine.errors import InputError
from engine.files.reading import kind_of
from engine.ranges import MOST_TOKENS, Count, Rate, Seed, parse_number
from engine.runs.distribution import finite


@dataclass(frozen=True, kw_only=True)
class Command(SourceOptions, ServerOptions, TableOptions):
    """Fluid equilibrium of a workload on a profile, and quotas for WAIT and Nested WAIT."""

    rate: Rate | None = None
    """Arrival rate, requests/s (default 1.6, or that of a trace)."""
    bounds: str = "64,128,256"
    """Output tokens that end a type or segment, rising, comma separated; what is longer is the last one."""
    limit: Count | None = None
    """Requests in service that the quotas add up to (default: what the KV holds, at most max_num_seqs)."""
    seed: Seed = 0
    """Draws the sample of the workload."""
    json: Path | None = None
    """Also write the figures to this file."""

    def run(self) -> None:
        """Fit, solve, print, write.

        Raises:
            InputError: options that do not fit, or a file that cannot be written.
        """
        bounds = self._bounds()
        check_writable(self.json)
        (given,) = self.loads(self.rate, None)
        requests = self.source().requests(given, self.seed)
        load = _rate_of(requests) if given is None else given
        result = solve(fluid.types_of(requests, load, bounds), self)
        console = terminal_console()
        console.print(Text(f"{requests.source} at {load:.3g} requests/s on {self.profile}"))
        show(_table(result), console, self.wide)
        print_lines(console, remarks(result))
        write_json(self.json, result)

    def _bounds(self) -> list[int]:
        bounds = [number for part in self.bounds.split(",") if isinstance(number := parse_number(part), int)]
        if len(bounds) <= self.bounds.count(",") or max(bounds) > MOST_TOKENS:
            raise InputError(f"bounds: expected token counts such as 64,128,256, got {kind_of(self.bounds)}")
        return bounds


def _rate_of(requests: Requests) -> float:
    """Requests/s at which recorded requests came."""
    duration = float(requests.arrival[-1] - requests.arrival[0])
    if duration <= 0.0:
        raise InputError("rate: expected --rate for requests that all arrive at once")
    return len(requests) / duration


@dataclass(frozen=True)
class Kind:
    """The requests of one type or segment, and its quotas; None where there is no equilibrium."""

    up_to: float | None
    """Longest output, tokens."""
    rate: float | None
    """Requests/s."""
    prompt: float | None
    """Mean tokens."""
    output: float | None
    per_stage: float | None
    """Requests at each output token."""
    wait: float | None
    nested_wait: float | None


@dataclass(frozen=True)
class Balance:
    """Equilibrium and quotas; the fields are the keys of the JSON form."""

    types: tuple[Kind, ...]
    d0_s: float
    d1_s_per_token: float
    line_error: float
    load: float
    iteration_s: float | None
    kv_tokens: float | None
    capacity_tokens: int
    stable: bool
    limit: float
    quota_kv_tokens: float
    quotas_keep_up: bool
    wait: str
    nested_wait: str


def solve(types: fluid.Types, options: Command) -> Balance:
    """Equilibrium and quotas."""
    capacity = options.engine.capacity_tokens
    line = fluid.fit_line(options.model(), types, capacity)
    balance = fluid.equilibrium(types, line)
    limit = options.limit or min(fluid.in_service(types, capacity), options.engine.max_num_seqs)
    wait = fluid.wait_quotas(types, limit)
    nested = fluid.nested_quotas(types.bound, types.rate, limit)
    columns = (types.bound, types.rate, types.prompt, types.output, balance.per_stage, wait, nested)
    whole = (int, float, float, float, float, int, int)
    return Balance(
        types=tuple(
            Kind(*(finite(kind(value)) for kind, value in zip(whole, row, strict=True)))
            for row in zip(*columns, strict=True)
        ),
        d0_s=line.d0,
        d1_s_per_token=line.d1,
        line_error=line.error,
        load=balance.load,
        iteration_s=finite(balance.iteration_s),
        kv_tokens=finite(balance.kv_tokens),
        capacity_tokens=capacity,
        stable=balance.stable(capacity),
        limit=limit,
        quota_kv_tokens=fluid.kv_needed(types, wait),
        quotas_keep_up=fluid.keeps_up(types, line, wait),
        wait=f"wait:types={fluid.quota_spec(types.bound, wait)}",
        nested_wait=f"nested_wait:segments={fluid.quota_spec(types.bound, nested)}",
    )


def _table(result: Balance) -> Grid:
    titles = ("output up to", "requests/s", "prompt", "output", "in each stage", "WAIT quota", "Nested quota")
    rows = [
        (
            str(kind.up_to),
            figure(kind.rate, ".3f"),
            figure(kind.prompt, ".0f"),
            figure(kind.output, ".0f"),
            figure(kind.per_stage, ".3f"),
            str(kind.wait),
            str(kind.nested_wait),
        )
        for kind in result.types
    ]
    return Grid([Head(title) for title in titles], [Part(rows)])


def remarks(result: Balance) -> list[str]:
    """The figures of the whole server, a line each, and the quotas as specs of the policies."""
    memory = figure(result.kv_tokens, ",.0f")
    length = "-" if result.iteration_s is None else f"{1000 * result.iteration_s:.1f} ms"
    verdict = "keep up with the arrivals" if result.quotas_keep_up else "do NOT keep up with the arrivals"
    return [
        f"iteration = {1000 * result.d0_s:.2f} ms + {1e9 * result.d1_s_per_token:.1f} ns per KV token "
        f"(at most {result.line_error:.1%} off the profile for batches of this mix)",
        f"load {result.load:.2f} ({'stable' if result.stable else 'NOT stable'}): iterations of {length}, "
        f"{memory} of {result.capacity_tokens:,} KV tokens in use",
        f"{result.limit:.0f} requests in service: quotas {verdict} and hold {result.quota_kv_tokens:,.0f} KV tokens",
        result.wait,
        result.nested_wait,
    ]
