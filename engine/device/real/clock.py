"""Seconds that a GPU needs for a batch, without those in which it waits for its host."""

import time
from types import TracebackType
from typing import Any

import torch

CYCLES_PER_S = 2e9
"""At least as many as a GPU has."""
MARGIN_S = 1e-3
"""Seconds that it idles at least."""


class DeviceClock:
    """Around the launches of a batch: the GPU first idles until all of them are in its queue.

    It idles as long as the launches took last time and half as long again, so a batch is measured from its second time.
    """

    def __init__(self) -> None:
        events: Any = torch.cuda.Event
        self._marks = [events(enable_timing=True) for _ in range(2)]
        self._idle_s = self._launch_s = self._began = 0.0

    def __enter__(self) -> None:
        """Let the GPU idle."""
        self._idle_s = 1.5 * self._launch_s + MARGIN_S
        torch.cuda.synchronize()
        torch.cuda._sleep(int(CYCLES_PER_S * self._idle_s))  # type: ignore[no-untyped-call]
        self._marks[0].record()
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Mark the end of the batch."""
        self._marks[1].record()
        self._launch_s = time.perf_counter() - self._began

    @property
    def waited(self) -> bool:
        """Whether the GPU may have waited for a launch of the latest batch: then its seconds say nothing."""
        return self._launch_s >= self._idle_s

    def seconds(self) -> float:
        """Seconds of the latest batch."""
        self._marks[1].synchronize()
        return float(self._marks[0].elapsed_time(self._marks[1])) / 1e3
