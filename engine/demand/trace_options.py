"""How a trace file is to be read: unit of its times, part of it, what happens to rows that cannot be served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from engine.config import EngineConfig
from engine.errors import InputError
from engine.fields import checked
from engine.ranges import SECONDS, Rate, Seconds, whole

Tokenizer = Callable[[str], int]
"""Returns the number of tokens of a text."""
TimeUnit = Literal["s", "ms", "us", "ns"]
PER_SECOND: dict[str, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Units of time in files, and how many are a second."""
Unservable = Literal["refuse", "skip"]


@dataclass(frozen=True)
class TraceOptions:
    """How a trace file is to be read."""

    time_unit: TimeUnit | None = None
    """Unit of the recorded times; None: that of the format, where it has one."""
    rate_scale: Rate = 1.0
    """Factor on the recorded arrival rate (0.5: half as many requests per second)."""
    window: tuple[Seconds, Seconds | None] = (0.0, None)
    """Only requests from the first time up to before the second are taken (s from the first request; None: the end)."""
    unservable: Unservable = "refuse"
    """What happens to rows that cannot be served (no tokens, no time, too long, out of order): the file is refused, or
    they are left out and counted by reason in the source line; those out of order are put in order."""
    max_tokens: Annotated[int, whole(0)] = 0
    """Longest prompt + output that is taken (tokens); 0: no limit."""
    server: EngineConfig | None = None
    """The server that is to take them (`EngineConfig.unservable`); None: any."""
    tokenizer: Tokenizer | str | Path | None = None
    """What counts the tokens of conversations: a function, ``words``, ``mistral`` or a folder with `tokenizer.json`."""

    def __post_init__(self) -> None:
        """Check every field but the tokenizer, which is looked at where one is needed.

        Raises:
            InputError: a word that is not known, or a number out of range.
        """
        checked(self, "", untyped=("tokenizer",))
        start, end = self.window
        if end is not None and not start < end:
            raise InputError(f"window: expected a start before the end, got {start:g} s and {end:g} s")

    @property
    def windowed(self) -> bool:
        """Whether only a part of the file is taken."""
        return self.window != (0.0, None)

    def limit(self, rows: int | None) -> int | None:
        """Rows of the file that have to be read for so many requests; None: all."""
        return None if self.windowed or self.unservable == "skip" else rows


AS_IT_IS = TraceOptions()
"""A whole file in which every row can be served."""


def parse_window(text: str) -> tuple[float, float | None]:
    """``START:END`` in seconds from a trace's first request; either may be left out.

    Raises:
        InputError: not that, or nothing between them.
    """
    try:
        start, end = (SECONDS.parse(side, "window") if side.strip() else None for side in text.split(":"))
        return TraceOptions(window=(start or 0.0, end)).window
    except ValueError:  # InputError is one
        raise InputError(
            f"window: expected START:END in seconds from the first request, 0 <= START < END, got {text!r}"
        ) from None
