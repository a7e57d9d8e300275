"""Traces: files of real requests in, `Requests` out; and a writer of Mooncake jsonl."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from engine.demand.length_models import EmpiricalLengths
from engine.demand.raw_trace import Tokenizer
from engine.demand.requests import DEFAULT_TIERS, Requests, Tier, draw_tiers, seeded
from engine.demand.trace_files import read_columns
from engine.demand.trace_formats import MOONCAKE
from engine.demand.trace_options import TimeUnit, TraceOptions, Unservable, trace_options
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
    *,
    rate: float | None = None,
    rate_scale: float = 1.0,
    num_requests: int | None = None,
    seed: int = 0,
    tiers: tuple[Tier, ...] = DEFAULT_TIERS,
    arrivals: str | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    time_unit: TimeUnit | None = None,
    window: str | None = None,
    unservable: Unservable = "refuse",
    max_tokens: int = 0,
    options: TraceOptions | None = None,
) -> Requests:
    """Read a trace file; the format is found from the content.

    Known formats: csv with `num_prefill_tokens,num_decode_tokens` and perhaps `arrived_at` (s); Azure csv
    (`TIMESTAMP,ContextTokens,GeneratedTokens`, dates in UTC); BurstGPT csv (times in s; failed requests, with 0
    response tokens, are left out and counted in the source line); Mooncake jsonl (`timestamp` in ms, `input_length`,
    `output_length`, perhaps `hash_ids`, which are ignored; with any further key the unit of time has to be said, as far
    as rows are read: those behind `num_requests` are not);
    ShareGPT json or jsonl (see `engine.demand.sharegpt`); results of ``vllm bench serve --save-detailed``.

    A file with arrival times is replayed in its order, times counted from its first request: the first
    `num_requests` rows, then the rate change. A file without them (or any file when `arrivals` is given) is
    shuffled by seed, as the public SLAI code does, and gets synthetic arrivals; more requests than rows are
    drawn with replacement.

    Args:
        path: the file.
        rate: mean arrival rate to reach (requests/s): synthetic arrivals need it, recorded times are
            stretched to it.
        rate_scale: factor on the recorded arrival rate (0.5 = half as many requests per second).
        num_requests: number of requests; None takes every row.
        seed: draws tiers, and for synthetic arrivals order and times (whole number >= 0).
        tiers: service tiers; each request's is drawn by share.
        arrivals: synthetic arrivals as a workload spec without rate, number and lengths (`gamma:cv=2`);
            None keeps recorded times and draws Poisson arrivals where there are none.
        tokenizer: function from text to number of tokens, ``words``, ``mistral`` or a folder with `tokenizer.json`;
            for conversations only.
        time_unit: unit of the recorded times (s, ms, us, ns); None: that of the format.
        window: ``START:END`` in seconds from the first request, either may be left out: only those requests.
        unservable: ``refuse`` a file with rows that cannot be served (no tokens, no time, too long, out of order), or
            ``skip`` them, counted by reason in the source line; those out of order are put in order.
        max_tokens: longest prompt + output that the server takes (`EngineConfig.max_request_tokens`); 0: no limit.
        options: instead of the last four.

    Raises:
        InputError: unreadable or unknown file, bad values (names file and line), or arguments that do not
            fit the file.
    """
    path = Path(path)
    _check_arguments(rate, rate_scale, num_requests)
    options = options or trace_options(time_unit, window, unservable, max_tokens)
    columns = read_columns(path, options, tokenizer, num_requests if arrivals is None else None)
    if columns.arrival is not None and arrivals is None:
        return _recorded(path, columns, rate, rate_scale, num_requests, seed, tiers)
    if rate_scale != 1.0:
        raise InputError(
            f"rate_scale: expected recorded arrival times to scale, got synthetic ones for {path} (use rate)"
        )
    workload = _arrivals_of(arrivals or "poisson", tiers)
    if rate is None and workload.process.has_rate:
        raise InputError(f"rate: expected a rate in requests/s, since {path} gives no arrival times to use, got none")
    lengths = EmpiricalLengths(columns.prompt, columns.output, f"{path.name} ({columns.note})")
    number = len(lengths) if num_requests is None else num_requests
    rate = workload.rate if rate is None else rate
    return dataclasses.replace(workload, rate=rate, num_requests=number, lengths=lengths).generate(seed)


def _arrivals_of(spec: str, tiers: tuple[Tier, ...]) -> Workload:
    """The workload whose arrivals are put on the lengths of a file; its spec says nothing else."""
    parsed = Spec.parse(spec)
    if parsed.name == "recorded":
        raise InputError("arrivals: expected a process that draws times, got recorded (leave it out)")
    workload = parse_workload(spec, tiers)
    if parsed.given & _NOT_OF_ARRIVALS or workload.arrivals == "toy":
        raise InputError(f"arrivals: expected an arrival process without rate, number and lengths, got {spec!r}")
    return workload


def trace_lengths(
    path: str | Path,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    options: TraceOptions | None = None,
) -> EmpiricalLengths:
    """Read the prompt and output lengths of a trace file in any format that `read_trace` knows.

    Raises:
        InputError: as `read_trace`.
    """
    path = Path(path)
    columns = read_columns(path, options or TraceOptions(), tokenizer)
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


def _check_arguments(rate: float | None, rate_scale: float, num_requests: int | None) -> None:
    if rate is not None:
        RATE.check(rate, "rate")
    RATE.check(rate_scale, "rate_scale")
    if rate is not None and rate_scale != 1.0:
        raise InputError(f"rate, rate_scale: expected one of them, got {rate:g} and {rate_scale:g}")
    if num_requests is not None:
        COUNT.check(num_requests, "num_requests")
        check_memory(num_requests, BYTES_PER_REQUEST, "num_requests")


def _recorded(
    path: Path,
    columns: TraceColumns,
    rate: float | None,
    rate_scale: float,
    num_requests: int | None,
    seed: int,
    tiers: tuple[Tier, ...],
) -> Requests:
    assert columns.arrival is not None
    n = columns.arrival.shape[0]
    if num_requests is not None and num_requests > n:
        raise InputError(f"num_requests: expected 1..{n} (the rows of {path}), got {num_requests}")
    factor = _rate_factor(path, columns.arrival, rate, rate_scale)
    tier = draw_tiers(seeded(seed), n, tiers)
    changed = f", rate times {factor:.6g}" if factor != 1.0 else ""
    source = f"{path.name} ({columns.note}), {n} requests at recorded times{changed}, tiers by seed {seed}"
    return Requests.create(columns.arrival / factor, columns.prompt, columns.output, tier, tiers=tiers, source=source)


def _rate_factor(path: Path, arrival: FloatArray, rate: float | None, rate_scale: float) -> float:
    if rate is None:
        return rate_scale
    span = float(arrival[-1] - arrival[0])
    if span <= 0.0:
        raise InputError(f"rate: expected recorded times that differ, to reach {rate:g}/s, got one time only in {path}")
    return rate * span / (arrival.shape[0] - 1)
