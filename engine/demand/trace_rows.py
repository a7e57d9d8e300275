"""From the rows of a trace file to requests that a server can serve: exact times, whole tokens, what is left out.

A row is *unservable* if it has no prompt or no output, has no time, is cut short, or is longer than the server takes.
Such rows are refused, all of them counted by reason, or left out and counted; rows that are out of order are then put
in order. A row that is no row of such a file at all (text where a number belongs, a fraction of a token) is always
refused, with its line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from engine.config import EngineConfig
from engine.demand.trace_values import PER_SECOND, FloatArray, Int64Array, TimeUnit, times_of, tokens_of
from engine.errors import InputError
from engine.fields import MOST_SECONDS, parse_number
from engine.files.reading import kind_of

Unservable = Literal["refuse", "skip"]


@dataclass(frozen=True)
class TraceOptions:
    """How a trace file is to be read."""

    time_unit: TimeUnit | None = None
    """Unit of the times; None: that of the format, where it has one."""
    window: tuple[float, float] = (0.0, float("inf"))
    """Seconds from the first request: only requests from the first up to before the second are taken."""
    unservable: Unservable = "refuse"
    """What happens to rows that cannot be served."""
    max_tokens: int = 0
    """Longest prompt + output that is taken (tokens); 0: no limit."""
    server: EngineConfig | None = None
    """The server that is to take them (`EngineConfig.unservable`); None: any."""

    def __post_init__(self) -> None:
        """Check the words.

        Raises:
            InputError: one is not known.
        """
        if self.time_unit is not None and self.time_unit not in PER_SECOND:
            raise InputError(f"time_unit: expected {', '.join(PER_SECOND)}, got {kind_of(self.time_unit)}")
        if self.unservable not in get_args(Unservable):
            raise InputError(f"unservable: expected refuse or skip, got {kind_of(self.unservable)}")

    @property
    def windowed(self) -> bool:
        """Whether only a part of the file is taken."""
        return self.window != (0.0, float("inf"))

    def limit(self, rows: int | None) -> int | None:
        """Rows of the file that have to be read for so many requests; None: all."""
        return None if self.windowed or self.unservable == "skip" else rows


def parse_window(text: str) -> tuple[float, float]:
    """``START:END`` in seconds from a trace's first request; either may be left out.

    Raises:
        InputError: not that, or nothing between them.
    """
    start, colon, end = text.partition(":")
    low = parse_number(start) if start.strip() else 0.0
    high = parse_number(end) if end.strip() else float("inf")
    good = colon and low is not None and high is not None and 0.0 <= low < high and low <= MOST_SECONDS
    if not good or (end.strip() and not (high or 0.0) <= MOST_SECONDS):
        raise InputError(
            f"window: expected START:END in seconds from the first request, 0 <= START < END, got {text!r}"
        )
    return float(low or 0.0), float(high if high is not None else 0.0)


@dataclass(frozen=True, eq=False)
class TraceColumns:
    """The requests of a trace file in order of time, as arrays of equal length n."""

    arrival: FloatArray | None
    """Arrival times counted from the first row, float64[n] (s), non-decreasing; None if there are none."""
    prompt: Int64Array
    """Prompt lengths, int64[n] (tokens), >= 1."""
    output: Int64Array
    """Output lengths, int64[n] (tokens), >= 1."""
    note: str
    """Format, what was assumed, and what was left out, for the source line of the requests."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows that were left out, and those that were put in order, by reason."""


@dataclass(eq=False)
class RawTrace:
    """The rows of a trace file as they are written."""

    path: Any
    """The file, for messages."""
    name: str
    """Name of the format."""
    columns: tuple[str, str, str]
    """Names of the columns of times (empty: none), prompts and outputs, for messages."""
    place: str = "line"
    """What a row's number counts: line, request."""
    numbers: list[int] = field(default_factory=list)
    """Number of each row."""
    times: list[Any] = field(default_factory=list)
    """Times as text or numbers; empty if the file has none."""
    prompts: list[Any] = field(default_factory=list)
    """Prompt lengths as text or numbers, None or empty where there is none."""
    outputs: list[Any] = field(default_factory=list)
    """Output lengths in the same way."""
    unit: str | None = None
    """Unit of the times: s, ms, us, ns, iso; None: not known."""
    notes: list[str] = field(default_factory=list)
    """What else the source line should say."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that the format itself leaves out, and rows that were cut short, by reason."""
    in_order: bool = True
    """Whether the rows of the file are meant to be in order of time."""

    def add(self, number: int, time: Any, prompt: Any, output: Any) -> None:
        """Add one row; None for a time in a file without times."""
        self.numbers.append(number)
        if self.columns[0]:
            self.times.append(time)
        self.prompts.append(prompt)
        self.outputs.append(output)

    def where(self, index: int) -> str:
        """File and row, for messages."""
        return f"{self.path}, {self.place} {self.numbers[index]}"


def screen(raw: RawTrace, options: TraceOptions) -> TraceColumns:
    """The requests in the rows.

    Raises:
        InputError: no rows, rows that cannot be served (unless they are to be skipped), a unit of time that nobody
            said, or values that no such file has; names file and line.
    """
    if not raw.numbers:
        left_out = f" besides {_listed(raw.left_out)}" if raw.left_out else ""
        raise InputError(f"{raw.path}: expected at least one row of data, got none{left_out}")
    prompt = tokens_of(raw, raw.columns[1], raw.prompts)
    output = tokens_of(raw, raw.columns[2], raw.outputs)
    arrival = times_of(raw, options.time_unit) if raw.times else None
    if arrival is None and (options.windowed or options.time_unit is not None):
        name = "window" if options.windowed else "time_unit"
        raise InputError(f"{name}: expected a trace with arrival times, got none in {raw.path}")
    fault = _faults(raw, arrival, prompt, output, options)
    keep, found, note = _judged(raw, fault, options)
    columns = TraceColumns(None if arrival is None else arrival[keep], prompt[keep], output[keep], note, found)
    return columns if arrival is None else _in_order(raw, columns, options)


class _Fault:
    """Why rows cannot be served: the reason of each (0: none), and what was expected and got in words."""

    def __init__(self, rows: int) -> None:
        self.reason = np.zeros(rows, np.int64)
        self.names: list[str] = [""]
        self.told: dict[int, str] = {}

    def mark(self, bad: npt.NDArray[np.bool_], name: str, tell: Callable[[int], str]) -> None:
        """Note a reason for the rows that have none yet."""
        bad = bad & (self.reason == 0)
        if bad.any():
            self.names.append(name)
            self.reason[bad] = len(self.names) - 1
            first = int(np.argmax(bad))
            self.told[first] = tell(first)


def _faults(
    raw: RawTrace, arrival: FloatArray | None, prompt: Int64Array, output: Int64Array, options: TraceOptions
) -> _Fault:
    fault = _Fault(len(prompt))
    for values, column, what in ((prompt, raw.columns[1], "prompt"), (output, raw.columns[2], "output")):
        cells = raw.prompts if what == "prompt" else raw.outputs
        fault.mark(
            values < 1,
            f"without {what} tokens",
            lambda i, column=column, cells=cells: (  # type: ignore[misc]
                f"expected a whole number of tokens >= 1 for {column}, got {_shown(cells[i])}"
            ),
        )
    if options.max_tokens:
        fault.mark(
            prompt + output > options.max_tokens,
            f"longer than {options.max_tokens} tokens",
            lambda i: (
                f"expected prompt + output <= {options.max_tokens} tokens (max_model_len, or the server's KV), "
                f"got {prompt[i]} + {output[i]}"
            ),
        )
    if server := options.server:
        fault.mark(
            server.unservable(prompt, output),
            f"longer than {server.max_request_tokens} tokens",
            lambda i: f"expected {server.required_of(int(prompt[i]))}, got {prompt[i]} + {output[i]}",
        )
    if arrival is not None:
        fault.mark(np.isnan(arrival), "without a time", lambda i: f"expected a time for {raw.columns[0]}, got nothing")
        if options.unservable == "refuse" and raw.in_order:
            filled = np.where(np.isnan(arrival), -np.inf, arrival)
            latest = np.concatenate([[-np.inf], np.maximum.accumulate(filled)[:-1]])
            fault.mark(
                filled < latest,
                "out of order",
                lambda i: (
                    f"expected times in order (at least {latest[i]:.9g} s after the first) for {raw.columns[0]}, "
                    f"got {arrival[i]:.9g} s"
                ),
            )
    return fault


def _judged(raw: RawTrace, fault: _Fault, options: TraceOptions) -> tuple[npt.NDArray[np.bool_], dict[str, int], str]:
    """Rows to keep, rows left out by reason, and the note on the file."""
    counts = np.bincount(fault.reason, minlength=len(fault.names))
    found = Counter({name: int(n) for name, n in zip(fault.names[1:], counts[1:], strict=True)})
    if found and options.unservable == "refuse":
        first = min(fault.told)
        raise InputError(
            f"{raw.where(first)}: {fault.told[first]}; {sum(found.values())} of {len(raw.numbers)} rows cannot be "
            f"served ({_listed(found)}): unservable='skip' (--unservable skip) leaves them out and counts them"
        )
    keep = fault.reason == 0
    if not keep.any():
        raise InputError(f"{raw.path}: expected at least one row that can be served, got {_listed(found)}")
    found += raw.left_out
    parts = [raw.name, *raw.notes]
    if found:
        parts.append(f"{_listed(found)} left out")
    return keep, dict(found), ", ".join(parts)


def _in_order(raw: RawTrace, columns: TraceColumns, options: TraceOptions) -> TraceColumns:
    """The rows in order of time and within the window, times from the first one taken."""
    arrival = columns.arrival
    assert arrival is not None
    note, left_out = columns.note, dict(columns.left_out)
    late = int((arrival < np.maximum.accumulate(arrival)).sum())
    if late and raw.in_order:
        note, left_out["put in order"] = f"{note}, {late} out of order put in order", late
    order = np.argsort(arrival, kind="stable") if late else np.arange(len(arrival))
    arrival = arrival[order] - arrival[order[0]]
    low, high = options.window
    inside = (arrival >= low) & (arrival < high)
    if options.windowed:
        if not inside.any():
            raise InputError(f"window: expected requests of {raw.path}, which lasts {arrival[-1]:.6g} s, got none")
        note = f"{note}, {int(inside.sum())} of {len(arrival)} requests from {low:g} s" + (
            f" to {high:g} s" if high < float("inf") else " on"
        )
    order, arrival = order[inside], arrival[inside]
    if arrival[-1] > MOST_SECONDS:
        raise InputError(
            f"{raw.path}: expected times within {MOST_SECONDS:g} s of the first, got {arrival[-1]:.6g} s "
            "(is it another unit: time_unit, --time-unit?)"
        )
    taken = replace(columns, prompt=columns.prompt[order], output=columns.output[order])
    return replace(taken, arrival=arrival - arrival[0], note=note, left_out=left_out)


def _listed(found: Counter[str] | dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in found.items())


def _shown(cell: Any) -> str:
    return "nothing" if cell is None or cell == "" else str(cell)[:40]
