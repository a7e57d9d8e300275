"""Traces: files of real requests in, `Requests` out; and a writer of Mooncake jsonl."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from engine.demand.length_models import EmpiricalLengths
from engine.demand.requests import DEFAULT_TIERS, Requests, Tier, draw_tiers, seeded
from engine.demand.trace_files import read_columns
from engine.demand.trace_formats import MOONCAKE
from engine.demand.trace_options import AS_IT_IS, TraceOptions
from engine.demand.trace_rows import TraceColumns
from engine.demand.trace_values import FloatArray
from engine.demand.workload import BYTES_PER_REQUEST, Workload, parse_workload
from engine.errors import InputError
from engine.files.writing import write_atomically
from engine.machine import check_memory
from engine.ranges import COUNT, RATE
from engine.spec import Spec

_NOT_OF_ARRIVALS = {"rate", "num_requests", "lengths", "trace", "unservable"}
"""Keys of a workload that say more than how requests arrive."""


def read_trace(
    path: str | Path,
    options: TraceOptions = AS_IT_IS,
    *,
    rate: float | None = None,
    num_requests: int | None = None,
    seed: int = 0,
    tiers: tuple[Tier, ...] = DEFAULT_TIERS,
    arrivals: str | None = None,
) -> Requests:
    """Read a trace file; the format is found from the content.

    Known formats: csv with `num_prefill_tokens,num_decode_tokens` and perhaps `arrived_at` (s); Azure csv
    (`TIMESTAMP,ContextTokens,GeneratedTokens`, dates in UTC); BurstGPT csv (times in s; failed requests, with 0
    response tokens, are left out and counted in the source line); Mooncake jsonl (`timestamp` in ms, `input_length`,
    `output_length`, perhaps `hash_ids`, which are ignored; with any further key the unit of time has to be said, as far
    as rows are read: those behind `num_requests` are not);
    ShareGPT json or jsonl (see `engine.demand.sharegpt`); results of ``vllm bench serve --save-detailed``; the log of
    a vLLM server's requests (`engine.demand.server_run`) and its Prometheus text (`engine.demand.prometheus`).

    A file with arrival times is replayed in its order, times counted from its first request: the first
    `num_requests` rows, then the rate change. A file without them (or any file when `arrivals` is given) is
    shuffled by seed, as the public SLAI code does, and gets synthetic arrivals; more requests than rows are
    drawn with replacement.

    Args:
        path: the file.
        options: how it is read: unit, scale and part of the times, rows that cannot be served, what counts tokens.
        rate: mean arrival rate to reach (requests/s): synthetic arrivals need it, recorded times are
            stretched to it.
        num_requests: number of requests; None takes every row.
        seed: draws tiers, and for synthetic arrivals order and times (whole number >= 0).
        tiers: service tiers; each request's is drawn by share.
        arrivals: synthetic arrivals as a workload spec without rate, number and lengths (`gamma:cv=2`);
            None keeps recorded times and draws Poisson arrivals where there are none.

    Raises:
        InputError: unreadable or unknown file, bad values (names file and line), or arguments that do not
            fit the file.
    """
    path = Path(path)
    _check_arguments(options, rate, num_requests)
    columns = read_columns(path, options, num_requests if arrivals is None else None)
    if columns.arrival is None or arrivals is not None:
        if options.rate_scale != 1.0:
            raise InputError(
                f"rate_scale: expected recorded arrival times to scale, got synthetic ones for {path} (use rate)"
            )
        return _synthetic(_arrivals_of(arrivals or "poisson", tiers), path, columns, rate, num_requests).generate(seed)
    _check_rows(path, columns, num_requests)
    factor = options.rate_scale if rate is None else _rate_factor(path, columns.arrival, rate)
    return _recorded(path, columns, factor, seed, tiers)


def _synthetic(
    workload: Workload, path: Path, columns: TraceColumns, rate: float | None, num_requests: int | None
) -> Workload:
    """The workload that puts its arrivals on the lengths of a file."""
    if rate is None and workload.process.has_rate:
        raise InputError(f"rate: expected a rate in requests/s, since {path} gives no arrival times to use, got none")
    return dataclasses.replace(
        workload,
        rate=workload.rate if rate is None else rate,
        num_requests=len(columns.prompt) if num_requests is None else num_requests,
        lengths=_lengths(path, columns),
    )


def _arrivals_of(spec: str, tiers: tuple[Tier, ...]) -> Workload:
    """The workload whose arrivals are put on the lengths of a file; its spec says nothing else."""
    parsed = Spec.parse(spec)
    if parsed.name == "recorded":
        raise InputError("arrivals: expected a process that draws times, got recorded (leave it out)")
    workload = parse_workload(spec, tiers)
    if parsed.given & _NOT_OF_ARRIVALS or workload.arrivals == "toy":
        raise InputError(f"arrivals: expected an arrival process without rate, number and lengths, got {spec!r}")
    return workload


def trace_lengths(path: str | Path, options: TraceOptions = AS_IT_IS) -> EmpiricalLengths:
    """Read the prompt and output lengths of a trace file in any format that `read_trace` knows.

    Raises:
        InputError: as `read_trace`.
    """
    path = Path(path)
    return _lengths(path, read_columns(path, options))


def _lengths(path: Path, columns: TraceColumns) -> EmpiricalLengths:
    return EmpiricalLengths(columns.prompt, columns.output, f"{path.name} ({columns.note})")


def write_mooncake(requests: Requests, path: str | Path) -> None:
    """Write requests as Mooncake jsonl, complete or not at all.

    The format has whole milliseconds; tiers and predictions have no place in it and are lost.

    Raises:
        InputError: the file cannot be written.
    """
    stamps = np.rint(requests.arrival * 1000.0).astype(np.int64).tolist()
    rows = zip(stamps, requests.prompt.tolist(), requests.output.tolist(), strict=True)
    lines = (json.dumps(dict(zip(MOONCAKE.columns, row, strict=True))) + "\n" for row in rows)
    write_atomically(path, "".join(lines))


def _check_arguments(options: TraceOptions, rate: float | None, num_requests: int | None) -> None:
    if rate is not None:
        RATE.check(rate, "rate")
        if options.rate_scale != 1.0:
            raise InputError(f"rate, rate_scale: expected one of them, got {rate:g} and {options.rate_scale:g}")
    if num_requests is not None:
        COUNT.check(num_requests, "num_requests")
        check_memory(num_requests, BYTES_PER_REQUEST, "num_requests")


def _check_rows(path: Path, columns: TraceColumns, num_requests: int | None) -> None:
    rows = len(columns.prompt)
    if num_requests is not None and num_requests > rows:
        raise InputError(f"num_requests: expected 1..{rows} (the rows of {path}), got {num_requests}")


def _recorded(path: Path, columns: TraceColumns, factor: float, seed: int, tiers: tuple[Tier, ...]) -> Requests:
    """The requests of a file at its times, their rate multiplied by a factor."""
    assert columns.arrival is not None
    n = len(columns.arrival)
    tier = draw_tiers(seeded(seed), n, tiers)
    changed = f", rate times {factor:.6g}" if factor != 1.0 else ""
    source = f"{path.name} ({columns.note}), {n} requests at recorded times{changed}, tiers by seed {seed}"
    return Requests.create(columns.arrival / factor, columns.prompt, columns.output, tier, tiers=tiers, source=source)


def _rate_factor(path: Path, arrival: FloatArray, rate: float) -> float:
    """What multiplies the mean rate of recorded times to `rate`."""
    span = float(arrival[-1] - arrival[0])
    if span <= 0.0:
        raise InputError(f"rate: expected recorded times that differ, to reach {rate:g}/s, got one time only in {path}")
    return rate * span / (arrival.shape[0] - 1)
