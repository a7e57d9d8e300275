"""How a trace file is to be read: unit of its times, part of it, what happens to rows that cannot be served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from engine.config import EngineConfig
from engine.errors import InputError
from engine.files.reading import kind_of
from engine.ranges import MOST_SECONDS, parse_number

TimeUnit = Literal["s", "ms", "us", "ns"]
PER_SECOND: dict[str, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Units of time in files, and how many are a second."""
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
    low = _seconds(start, 0.0)
    high = _seconds(end, float("inf"))
    if not colon or low is None or high is None or not low < high:
        raise InputError(
            f"window: expected START:END in seconds from the first request, 0 <= START < END, got {text!r}"
        )
    return low, high


def _seconds(text: str, default: float) -> float | None:
    """A time from the first request, None if the text is none."""
    if not text.strip():
        return default
    number = parse_number(text)
    return float(number) if number is not None and 0.0 <= number <= MOST_SECONDS else None


def trace_options(
    time_unit: TimeUnit | None = None, window: str | None = None, unservable: Unservable = "refuse", max_tokens: int = 0
) -> TraceOptions:
    """The options from the arguments of `engine.demand.traces.read_trace`, checked.

    Raises:
        InputError: one does not fit.
    """
    part = TraceOptions.window if window is None else parse_window(window)
    return TraceOptions(time_unit=time_unit, window=part, unservable=unservable, max_tokens=max_tokens)
