"""Traces: public files of real requests in, `Requests` out; and a writer of Mooncake jsonl."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TextIO

import numpy as np

from engine.errors import InputError
from engine.length_models import EmpiricalLengths
from engine.requests import DEFAULT_TIERS, Requests, Tier, draw_tiers, seeded
from engine.sharegpt import Tokenizer, load_tokenizer, read_sharegpt
from engine.trace_formats import FloatArray, TraceColumns, read_csv, read_mooncake
from engine.workload import parse_workload
from engine.writing import write_atomically


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
) -> Requests:
    """Read a trace file; the format is found from the content.

    Known formats: csv with `num_prefill_tokens,num_decode_tokens` and perhaps `arrived_at` (s); Azure csv
    (`TIMESTAMP,ContextTokens,GeneratedTokens`); BurstGPT csv (failed requests, with 0 response tokens, are
    left out and counted in the source line); Mooncake jsonl; ShareGPT json (see `engine.sharegpt`).

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
        tokenizer: function from text to number of tokens, or a folder with `tokenizer.json`; for ShareGPT
            only.

    Raises:
        InputError: unreadable or unknown file, bad values (names file and line), or arguments that do not
            fit the file.
    """
    path = Path(path)
    _check_arguments(rate, rate_scale, num_requests)
    columns = _read_columns(path, num_requests if arrivals is None else None, tokenizer)
    if columns.arrival is not None and arrivals is None:
        return _recorded(path, columns, rate, rate_scale, num_requests, seed, tiers)
    if rate_scale != 1.0:
        raise InputError(
            f"rate_scale: expected recorded arrival times to scale, got synthetic ones for {path} (use rate)"
        )
    workload = parse_workload(arrivals or "poisson", tiers)
    given = _given_keys(arrivals or "") & {"rate", "num_requests", "lengths"}
    if given or workload.arrivals == "toy":
        raise InputError(f"arrivals: expected an arrival process without rate, number and lengths, got {arrivals!r}")
    if rate is None and workload.arrivals != "burst":
        raise InputError(f"rate: expected a rate in requests/s, since {path} gives no arrival times to use, got none")
    lengths = EmpiricalLengths(columns.prompt, columns.output, f"{path.name} ({columns.note})")
    number = len(lengths) if num_requests is None else num_requests
    rate = workload.rate if rate is None else rate
    return dataclasses.replace(workload, rate=rate, num_requests=number, lengths=lengths).generate(seed)


def trace_lengths(path: str | Path, *, tokenizer: Tokenizer | str | Path | None = None) -> EmpiricalLengths:
    """Read the prompt and output lengths of a trace file in any format that `read_trace` knows.

    Raises:
        InputError: as `read_trace`.
    """
    path = Path(path)
    columns = _read_columns(path, None, tokenizer)
    return EmpiricalLengths(columns.prompt, columns.output, f"{path.name} ({columns.note})")


def write_mooncake(requests: Requests, path: str | Path) -> None:
    """Write requests as Mooncake jsonl, complete or not at all.

    The format has whole milliseconds; tiers and predictions have no place in it and are lost.

    Raises:
        InputError: the file cannot be written.
    """
    stamps = np.rint(requests.arrival * 1000.0).astype(np.int64).tolist()
    rows = zip(stamps, requests.prompt.tolist(), requests.output.tolist(), strict=True)
    keys = ("timestamp", "input_length", "output_length")
    write_atomically(path, "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))


def _check_arguments(rate: float | None, rate_scale: float, num_requests: int | None) -> None:
    if rate is not None and not (math.isfinite(rate) and rate > 0.0):
        raise InputError(f"rate: expected a finite number of requests/s > 0, got {rate!r}")
    if not (math.isfinite(rate_scale) and rate_scale > 0.0):
        raise InputError(f"rate_scale: expected a finite factor > 0, got {rate_scale!r}")
    if rate is not None and rate_scale != 1.0:
        raise InputError(f"rate, rate_scale: expected one of them, got {rate:g} and {rate_scale:g}")
    if num_requests is not None and not (isinstance(num_requests, int | np.integer) and num_requests >= 1):
        raise InputError(f"num_requests: expected a whole number >= 1, got {num_requests!r}")


def _given_keys(spec: str) -> set[str]:
    parts = spec.partition(":")[2].split(",")
    return {part.partition("=")[0].strip() for part in parts}


def _read_columns(path: Path, limit: int | None, tokenizer: Tokenizer | str | Path | None) -> TraceColumns:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parse(path, file, limit, tokenizer)
    except OSError as error:
        raise InputError(f"{path}: cannot read the trace ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected a text file (UTF-8), got something else") from None


def _parse(path: Path, file: TextIO, limit: int | None, tokenizer: Tokenizer | str | Path | None) -> TraceColumns:
    first = file.read(1)
    while first.isspace():
        first = file.read(1)
    file.seek(0)
    if first == "[":
        return read_sharegpt(path, file, load_tokenizer(tokenizer))
    if first == "{":
        return read_mooncake(path, file, limit)
    return read_csv(path, file, limit)


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
