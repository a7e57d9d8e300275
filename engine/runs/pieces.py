"""A compiled loop over a whole trace in pieces of about a second, so that Ctrl-C and signals are heard."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from engine.compiled.jit import hot
from engine.device.latency import Around, Executor
from engine.runs.steps import LIMIT, Loop
from engine.server.state import Server

PAUSED = -4
"""A compiled loop ended a piece; it goes on when called again."""

HAS_CLOCK = os.name == "posix"
"""Whether compiled code can tell the time; elsewhere pieces are sized by how long the last one took."""
FIRST_PIECE, PIECE_S = (1 << 62 if HAS_CLOCK else 500), 0.5
"""Decisions of the first piece at most, and seconds that a piece sized by the last one should take."""


@hot
def _no_clock(unused: int) -> int:
    return 0


OnProgress = Callable[[int, int], None]
"""Called now and then with the requests that have left the server and those of the trace."""


second: Any = types.ExternalFunction("time", types.int64(types.int64)) if HAS_CLOCK else _no_clock
"""The present second for compiled code, `second(0)`: the C library's `time`, a few nanoseconds."""


def tell(on_progress: OnProgress, server: Server) -> None:
    """Say how far a run is."""
    row = server.visible.row[0]
    on_progress(int(row.finished + row.dropped), int(row.num_requests))


class Watched(Around):
    """An executor that says twice a second how far the run is, between its batches: no clock sees the time it takes."""

    def __init__(self, executor: Executor, on_progress: OnProgress) -> None:
        super().__init__(executor)
        self.on_progress, self._due = on_progress, 0.0

    def seconds(self, server: Server) -> float:
        """Run the planned batch; its seconds."""
        if (now := time.monotonic()) >= self._due:
            tell(self.on_progress, server)
            self._due = now + PIECE_S
        return self.executor.seconds(server)


def run_in_pieces(
    run: Callable[..., Any], loop: Loop, max_decisions: int, on_progress: OnProgress | None = None
) -> int:
    """Serve the trace to its end, the horizon or the first error; the result does not depend on the pieces.

    Args:
        run: the compiled loop: ``run(*loop, count, stop)`` goes on after count[0] decisions, at most to `stop` of
            them, and counts.
        loop: what it works on.
        max_decisions: so many end it with LIMIT.
        on_progress: told after each piece.

    Returns:
        OVER, STALLED, LIMIT or HORIZON; a positive number is an error code of `begin`.
    """
    count, piece = np.zeros(1, np.int64), FIRST_PIECE
    while True:
        began, done = time.perf_counter(), int(count[0])
        code = int(run(*loop, count, min(done + piece, max_decisions)))
        if code != PAUSED:
            return code
        if count[0] >= max_decisions:
            return LIMIT
        if on_progress:
            tell(on_progress, loop.server)
        taken = max(time.perf_counter() - began, 1e-6)
        if not HAS_CLOCK:
            piece = max(1, int(piece * min(8.0, PIECE_S / taken)))
