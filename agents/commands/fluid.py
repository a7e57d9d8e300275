"""`llmsched fluid`: `engine.device.fluid` for a workload and a profile, and the quotas that follow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from agents.options import ServerOptions, SourceOptions, TableOptions
from agents.reporting.grid import Grid, Head, Part, show, terminal_console
from agents.work.files import check_writable, json_text, write_atomically
from engine.device import fluid
from engine.errors import InputError
from engine.files.reading import kind_of
from engine.ranges import MOST_TOKENS, parse_number


@dataclass(frozen=True, kw_only=True)
class Command(SourceOptions, ServerOptions, TableOptions):
    """Fluid equilibrium of a workload on a profile, and quotas for WAIT and Nested WAIT."""

    rate: float | None = None
    """Arrival rate, requests/s (default 1.6, or that of a trace)."""
    bounds: str = "64,128,256"
    """Output tokens that end a type or segment, rising, comma separated; what is longer is the last one."""
    limit: int | None = None
    """Requests in service that the quotas add up to (default: what the KV holds, at most max_num_seqs)."""
    seed: int = 0
    """Draws the sample of the workload."""
    json: Path | None = None
    """Also write the figures to this file."""

    def run(self) -> None:
        """Fit, solve, print, write.

        Raises:
            InputError: options that do not fit, or a file that cannot be written.
        """
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit: expected requests >= 1, got {self.limit}")
        bounds = [number for part in self.bounds.split(",") if isinstance(number := parse_number(part), int)]
        if len(bounds) <= self.bounds.count(",") or max(bounds) > MOST_TOKENS:
            raise InputError(f"bounds: expected token counts such as 64,128,256, got {kind_of(self.bounds)}")
        check_writable(self.json)
        (load,) = self.loads(self.rate, None)
        requests = self.source().requests(load, self.seed)
        if load is None:
            duration = float(requests.arrival[-1] - requests.arrival[0])
            if duration <= 0.0:
                raise InputError("rate: expected --rate for requests that all arrive at once")
            load = len(requests) / duration
        result = solve(fluid.types_of(requests, load, bounds), self)
        console = terminal_console()
        console.print(Text(f"{requests.source} at {load:.3g} requests/s on {self.profile}"))
        show(_table(result), console, self.wide)
        for line in remarks(result):
            console.print(Text(line))
        if self.json is not None:
            write_atomically(self.json, json_text(result))


def solve(types: fluid.Types, options: Command) -> dict[str, Any]:
    """Equilibrium and quotas as JSON."""
    capacity = options.engine.capacity_tokens
    line = fluid.fit_line(options.model(), types, capacity)
    balance = fluid.equilibrium(types, line)
    limit = options.limit or min(fluid.in_service(types, capacity), options.engine.max_num_seqs)
    wait = fluid.wait_quotas(types, limit)
    nested = fluid.nested_quotas(types.bound, types.rate, limit)
    rows = [
        {"up_to": int(b), "rate": r, "prompt": p, "output": o, "per_stage": s, "wait": int(w), "nested_wait": int(n)}
        for b, r, p, o, s, w, n in zip(
            types.bound, types.rate, types.prompt, types.output, balance.per_stage, wait, nested, strict=True
        )
    ]
    return {
        "types": [{key: _number(value) for key, value in row.items()} for row in rows],
        "d0_s": line.d0,
        "d1_s_per_token": line.d1,
        "line_error": line.error,
        "load": balance.load,
        "iteration_s": _number(balance.iteration_s),
        "kv_tokens": _number(balance.kv_tokens),
        "capacity_tokens": capacity,
        "stable": balance.stable(capacity),
        "limit": limit,
        "quota_kv_tokens": fluid.kv_needed(types, wait),
        "quotas_keep_up": fluid.keeps_up(types, line, wait),
        "wait": f"wait:types={fluid.quota_spec(types.bound, wait)}",
        "nested_wait": f"nested_wait:segments={fluid.quota_spec(types.bound, nested)}",
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _table(result: dict[str, Any]) -> Grid:
    titles = ("output up to", "requests/s", "prompt", "output", "in each stage", "WAIT quota", "Nested quota")
    rows = []
    for row in result["types"]:
        stage = "-" if row["per_stage"] is None else f"{row['per_stage']:.3f}"
        lengths = (f"{row['prompt']:.0f}", f"{row['output']:.0f}", stage)
        rows.append((str(row["up_to"]), f"{row['rate']:.3f}", *lengths, str(row["wait"]), str(row["nested_wait"])))
    return Grid([Head(title) for title in titles], [Part(rows)])


def remarks(result: dict[str, Any]) -> list[str]:
    """The figures of the whole server, a line each, and the quotas as specs of the policies."""
    memory = "-" if result["kv_tokens"] is None else f"{result['kv_tokens']:,.0f}"
    length = "-" if result["iteration_s"] is None else f"{1000 * result['iteration_s']:.1f} ms"
    verdict = "keep up with the arrivals" if result["quotas_keep_up"] else "do NOT keep up with the arrivals"
    return [
        f"iteration = {1000 * result['d0_s']:.2f} ms + {1e9 * result['d1_s_per_token']:.1f} ns per KV token "
        f"(at most {result['line_error']:.1%} off the profile for batches of this mix)",
        f"load {result['load']:.2f} ({'stable' if result['stable'] else 'NOT stable'}): iterations of {length}, "
        f"{memory} of {result['capacity_tokens']:,} KV tokens in use",
        f"{result['limit']:.0f} requests in service: quotas {verdict} and hold "
        f"{result['quota_kv_tokens']:,.0f} KV tokens",
        result["wait"],
        result["nested_wait"],
    ]
