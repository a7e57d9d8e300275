"""Progress bars of every command: on stderr, only where that is a terminal, gone when the work is done."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

OnProgress = Callable[[str, int, int], None]
"""Called with what is going on, how many pieces of it are done, and how many there are (0: not known)."""

REFRESH_S = 0.1
"""A bar is drawn anew at most this often: no thread beside the work, and no wait for a slow terminal."""


def unseen(stage: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


class Bars:
    """One bar for the stage that is going on; call it as `OnProgress` says."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar
        self._stage, self._drawn = "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is."""
        if self._bar is None:
            return
        if stage != self._stage:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(stage, total=total or None, completed=done)
            self._stage, self._drawn = stage, 0.0
        self._bar.update(self._bar.task_ids[0], completed=done, total=total or None)
        now = time.monotonic()
        if done >= total or now - self._drawn >= REFRESH_S:
            self._bar.refresh()
            self._drawn = now

    def counting(self, stage: str, total: int) -> Callable[[str], None]:
        """Of work that writes a line for each piece: a function that takes the line and counts."""
        done = 0
        self(stage, done, total)

        def note(line: str) -> None:
            nonlocal done
            done += 1
            self.log(line)
            self(stage, done, total)

        return note

    def log(self, line: str) -> None:
        """A line on stderr that stays, above the bar; it is written where there is no terminal, too."""
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bars(shown: bool = True) -> Iterator[Bars]:
    """Bars for the work inside; none if they are not wanted or stderr is no terminal."""
    if not (shown and sys.stderr.isatty()):
        yield Bars()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn())
    remaining = TimeRemainingColumn(compact=True)
    console = Console(stderr=True)
    # Standard output is not caught: it may be a file.
    options: dict[str, Any] = {"transient": True, "auto_refresh": False, "redirect_stdout": False}
    with Progress(*columns, remaining, console=console, **options) as bar:
        yield Bars(bar)
