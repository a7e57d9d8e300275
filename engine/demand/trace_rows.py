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

import numpy as np
import numpy.typing as npt

from engine.demand.raw_trace import RawTrace
from engine.demand.trace_options import TraceOptions
from engine.demand.trace_values import FloatArray, Int64Array, times_of, tokens_of
from engine.errors import InputError
from engine.ranges import MOST_SECONDS


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
    for what, values, column, cells in (
        ("prompt", prompt, raw.columns[1], raw.prompts),
        ("output", output, raw.columns[2], raw.outputs),
    ):
        fault.mark(
            values < 1,
            f"without {what} tokens",
            lambda i, column=column, cells=cells: (  # type: ignore[misc]
                f"expected a whole number of tokens >= 1 for {column}, got {_shown(cells[i])}"
            ),
        )
    _mark_long(fault, prompt, output, options)
    if arrival is not None:
        fault.mark(np.isnan(arrival), "without a time", lambda i: f"expected a time for {raw.columns[0]}, got nothing")
        if options.unservable == "refuse" and raw.in_order:
            _mark_late(fault, raw, arrival)
    return fault


def _mark_long(fault: _Fault, prompt: Int64Array, output: Int64Array, options: TraceOptions) -> None:
    """Note the rows that are longer than the limit, or than the server takes."""
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


def _mark_late(fault: _Fault, raw: RawTrace, arrival: FloatArray) -> None:
    """Note the rows whose time is before that of an earlier row."""
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
    if options.windowed:
        low, high = options.window
        inside = (arrival >= low) & (arrival < (np.inf if high is None else high))
        if not inside.any():
            raise InputError(f"window: expected requests of {raw.path}, which lasts {arrival[-1]:.6g} s, got none")
        until = " on" if high is None else f" to {high:g} s"
        note = f"{note}, {int(inside.sum())} of {len(arrival)} requests from {low:g} s{until}"
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


def _shown(cell: object) -> str:
    return "nothing" if cell is None or cell == "" else str(cell)[:40]
