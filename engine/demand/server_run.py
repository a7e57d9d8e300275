"""The log of a run of a real server: when its requests came and were served, its limits, what it did each second.

The requests are lines of JSON, one request each, with what vLLM knows of one that has ended (`RequestStateStats`):

    {"input_toks": 2358, "output_toks": 531, "arrival_time": 1787267980.08, "queued_ts": 27536.66,
     "scheduled_ts": 27536.67, "first_token_ts": 27537.35, "last_token_ts": 27554.23}

All times are in seconds: ``arrival_time`` on the clock of the front end (since 1970), the stamps on that of the engine,
which began at another time. A first or last token that never came is null or 0: the request did not finish. Two files
may lie beside ``NAME-requests.jsonl`` (or ``NAME.jsonl``): ``NAME-meta.json``, of which `LIMITS` are read, and
``NAME-timeseries.csv`` with `LOGGED`. The benchmark of LLMServingSim (casys-kaist) writes such files, without NAME-.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.files.lines import read_csv, read_jsonl
from engine.files.reading import is_there, kind_of, read_mapping
from engine.ranges import COUNT, MOST_SECONDS, MOST_TOKENS, number, whole

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

WHAT = "the requests of a server's run"
LENGTHS = ("input_toks", "output_toks")
STAMPS = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
"""Keys with times on the engine's clock, in the order in which they come."""
KEYS = (*LENGTHS, "arrival_time", *STAMPS)
LIMITS = {
    "num_blocks": ("kv_cache", "num_gpu_blocks"),
    "block_size": ("kv_cache", "block_size"),
    "max_num_seqs": ("engine_kwargs", "max_num_seqs"),
    "max_batched_tokens": ("engine_kwargs", "max_num_batched_tokens"),
    "max_model_len": ("engine_kwargs", "max_model_len"),
}
"""Limits of a server as `EngineConfig` calls them, and where ``run-meta.json`` has them."""
OPTIONS = {"prefix_cache": "enable_prefix_caching", "async_scheduling": "async_scheduling"}
"""What else `EngineConfig` has of a server, and vLLM's names: in ``kv_cache``, ``engine_kwargs`` or the
``scheduler_config`` of ``resolved_config``. Its prefix cache is on where that is not said."""
LOGGED = {
    "prompt": "prompt_throughput",
    "output": "gen_throughput",
    "running": "running",
    "waiting": "waiting",
}
"""What is logged at each time ``t`` (s): tokens/s in the time before it, requests then; and its columns."""
EVICTED = "preempted"
"""Column with the evictions in the time before, which may be missing."""
META, LOG = "meta.json", "timeseries.csv"
LATEST_BACK_S = 1.0
"""Requests may reach the engine in another order than they came, but not by more than this."""
_TOKENS, _TIME, _VALUE = whole(0, MOST_TOKENS), number(0.0, 1e12, noun="seconds"), number(0.0, 1e12)


@dataclass(frozen=True, eq=False)
class SecondLog:
    """What a server logged as it ran."""

    t: FloatArray
    """Times of the log, float64[k] (s), rising; 0 is less than a step before the first arrival, or at it."""
    step: float
    """Usual time between them (s)."""
    values: dict[str, FloatArray]
    """For each of `LOGGED` float64[k]."""
    evictions: int | None = None
    """How often requests lost their KV, if that was logged."""


@dataclass(frozen=True, eq=False)
class ServerRun:
    """A run of a real server; arrays of its finished requests in order of arrival, times in s from the first one."""

    path: Path
    """The file of the requests."""
    line: IntArray
    """Line of each request in it, int64[n]."""
    arrival: FloatArray
    """Arrivals, float64[n]; the first is 0."""
    scheduled: FloatArray
    """When each first was in a batch, float64[n]."""
    first_token: FloatArray
    last_token: FloatArray
    prompt: IntArray
    """Prompt tokens, int64[n], >= 1."""
    output: IntArray
    """Output tokens, int64[n], >= 1."""
    unfinished: int = 0
    """Requests of the file that did not finish; they are left out."""
    limits: dict[str, int | str] = field(default_factory=dict)
    """Those of `LIMITS` and `OPTIONS` that the run states, as `EngineConfig` has them."""
    about: str = ""
    """Model, engine and device, as far as the run states them."""
    log: SecondLog | None = None
    """What it logged, if it did."""


class _Row(NamedTuple):
    """A request that finished."""

    line: int
    prompt: int
    output: int
    arrival: float
    queued: float
    scheduled: float
    first_token: float
    last_token: float


def read_run(path: str | Path) -> ServerRun:
    """Read the requests of a run and what lies beside them.

    The two clocks are made one by the request that lost least time between them: it is taken to have lost none.

    Args:
        path: the file of the requests.

    Raises:
        InputError: a file that cannot be read, a missing key, no request that finished, or a clock that goes back;
            names file and line.
    """
    path = Path(path)
    rows, unfinished = _rows(path)
    line, prompt, output = (np.array([row[k] for row in rows], np.int64) for k in range(3))
    columns = {name: np.array([getattr(row, name) for row in rows], np.float64) for name in _Row._fields[3:]}
    _check_order(path, line, columns["queued"])
    arrival = columns["arrival"] - columns["arrival"][0]
    ahead = float((columns["queued"] - arrival).min())
    scheduled, first, last = (columns[name] - ahead for name in _Row._fields[5:])
    if last.max() > MOST_SECONDS:
        raise InputError(f"{path}: expected a run of at most {MOST_SECONDS:g} s, got {last.max():.6g} s")
    limits, about = _meta(_beside(path, META))
    return ServerRun(
        path=path,
        line=line,
        arrival=arrival,
        scheduled=scheduled,
        first_token=first,
        last_token=last,
        prompt=prompt,
        output=output,
        unfinished=unfinished,
        limits=limits,
        about=about,
        log=_log(_beside(path, LOG), float(last.max())),
    )


def _beside(path: Path, what: str) -> Path:
    """The file of a run with something else than its requests."""
    name = path.name.removesuffix("requests.jsonl")
    names = [f"{path.stem}-{what}" if name == path.name else f"{name}{what}", f"run-{what}", what]
    return next((there for one in names if is_there(there := path.with_name(one))), path.with_name(names[0]))


def _rows(path: Path) -> tuple[list[_Row], int]:
    """The requests that finished, in order of arrival, and how many did not."""
    found = [_row(path, line, data) for line, data in read_jsonl(path, WHAT)]
    finished = [row for row in found if row is not None]
    unfinished = len(found) - len(finished)
    if not finished:
        left = f"got {unfinished} that did not" if found else "got an empty file"
        raise InputError(f"{path}: expected at least one request that finished, {left}")
    return sorted(finished, key=lambda row: row.arrival), unfinished


def _row(path: Path, line: int, data: object) -> _Row | None:
    """One line of the file; None for a request that did not finish."""
    where = f"{path}, line {line}"
    data = _with_keys(data, where)
    prompt, output = (_TOKENS.check(data[key], f"{where}: {key}") for key in LENGTHS)
    arrival = _TIME.check(data["arrival_time"], f"{where}: arrival_time")
    stamps = [_TIME.check(0.0 if data[key] is None else data[key], f"{where}: {key}") for key in STAMPS]
    if 0 in (output, *stamps):
        return None
    COUNT.check(prompt, f"{where}: {LENGTHS[0]}")
    _check_stamps(stamps, where)
    return _Row(line, prompt, output, arrival, *stamps)


def _check_stamps(stamps: Sequence[float], where: str) -> None:
    """Find a stamp that is before the one that it comes after."""
    for k, (before, after) in enumerate(pairwise(stamps)):
        if after < before:
            raise InputError(f"{where}: expected {STAMPS[k + 1]} >= {STAMPS[k]} ({before:.9g} s), got {after:.9g} s")


def _with_keys(data: object, where: str) -> Mapping[str, object]:
    """What a line holds, if it has all `KEYS`."""
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a JSON object for each request, got {kind_of(data)}")
    if missing := [key for key in KEYS if key not in data]:
        raise InputError(f"{where}: expected keys {', '.join(KEYS)}; missing {', '.join(missing)}")
    return data


def _check_order(path: Path, line: IntArray, queued: FloatArray) -> None:
    """Find a clock that was set back, or the logs of two runs: arrivals and the engine tell another order."""
    behind = np.maximum.accumulate(queued) - queued
    if behind.max() > LATEST_BACK_S:
        index = int(np.argmax(behind > LATEST_BACK_S))
        raise InputError(
            f"{path}, line {line[index]}: expected queued_ts in the order of arrival_time to {LATEST_BACK_S:g} s, got "
            f"{behind[index]:.3f} s less than of an earlier arrival (a clock that went back, or the logs of two runs?)"
        )


def _meta(path: Path) -> tuple[dict[str, int | str], str]:
    """The limits that a run states, and what it ran on what."""
    if not is_there(path):
        return {}, ""
    data = read_mapping(path, "what is known of a server's run")
    stated = {name: (f"{group}.{key}", _group(path, data, group).get(key)) for name, (group, key) in LIMITS.items()}
    limits: dict[str, int | str] = {
        name: COUNT.check(value, f"{path}: {place}") for name, (place, value) in stated.items() if value is not None
    }
    version = data.get("vllm_version")
    limits |= _options(path, data, version is not None)
    named = (data.get("model"), version and f"vLLM {version}", _group(path, data, "hardware").get("device_name"))
    return limits, ", ".join(text for text in named if isinstance(text, str) and text.isprintable())


def _options(path: Path, data: Mapping[str, object], is_vllm: bool) -> dict[str, int | str]:
    """`OPTIONS`, as far as they are known."""
    caches, plans_ahead = (_stated(path, data, key) for key in OPTIONS.values())
    if caches is None and is_vllm:
        caches = True
    values = {"prefix_cache": None if caches is None else "own" if caches else "none", "async_scheduling": plans_ahead}
    return {name: value for name, value in values.items() if value is not None}


def _stated(path: Path, data: Mapping[str, object], key: str) -> bool | None:
    """What a run says about an option of its engine, wherever it does; None: nothing."""
    for group in ("kv_cache", "engine_kwargs", "resolved_config"):
        inside = _group(path, data, group)
        if group == "resolved_config":
            inside = _group(path, inside, "scheduler_config")
        value = inside.get(key)
        if value is not None:
            if not isinstance(value, bool):
                raise InputError(f"{path}: {group}: {key}: expected true or false, got {kind_of(value)}")
            return value
    return None


def _group(path: Path, data: Mapping[str, object], name: str) -> Mapping[str, object]:
    """One of the mappings in ``run-meta.json``; nothing where it is not there."""
    group = data.get(name)
    if group is None:
        return {}
    if not isinstance(group, dict):
        raise InputError(f"{path}: {name}: expected a mapping, got {kind_of(group)}")
    return group


def _log(path: Path, end: float) -> SecondLog | None:
    """What the server logged in a run that ended at `end` (s); None where it did not."""
    if not is_there(path):
        return None
    header, rows = _table(path, ("t", *LOGGED.values()))
    t, *values = (_column(path, rows, header.index(name), name) for name in ("t", *LOGGED.values()))
    for index in np.flatnonzero(np.diff(t, prepend=0.0) <= 0.0):
        raise InputError(f"{path}, line {rows[index][0]}: expected t to rise from > 0, got {t[index]:g}")
    evicted = _column(path, rows, header.index(EVICTED), EVICTED).sum() if EVICTED in header else None
    return _placed(t, dict(zip(LOGGED, values, strict=True)), None if evicted is None else int(evicted), end)


def _table(path: Path, names: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and rows of a csv file with these columns, which has at least one row."""
    (line, header), *rows = read_csv(path, "what a server logged each second") or [(1, [])]
    if missing := [name for name in names if name not in header]:
        raise InputError(f"{path}, line {line}: expected the columns {', '.join(names)}; missing {', '.join(missing)}")
    if not rows:
        raise InputError(f"{path}: expected at least one row of data, got none")
    return header, rows


def _placed(t: FloatArray, values: dict[str, FloatArray], evictions: int | None, end: float) -> SecondLog:
    """The log with its clock, which may have begun long before, set so that its last tokens are those of the run."""
    step = float(np.median(np.diff(t))) if len(t) > 1 else float(t[0])
    busy = np.flatnonzero(values["output"])
    late = np.floor((t[busy[-1] if len(busy) else -1] - end) / step) * step
    during = t - late > 0.0
    return SecondLog((t - late)[during], step, {name: column[during] for name, column in values.items()}, evictions)


def _column(path: Path, rows: Iterable[tuple[int, list[str]]], index: int, name: str) -> FloatArray:
    """One column of numbers."""
    cells = ((line, row[index] if index < len(row) else "") for line, row in rows)
    return np.array([_VALUE.parse(cell, f"{path}, line {line}: {name}") for line, cell in cells], np.float64)
