"""Closed loops, in which arrivals wait for completions: `Loop` says how."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import numpy as np

from engine.demand.columns import FloatArray, number_column, value_error
from engine.errors import InputError


@dataclass(frozen=True, eq=False)
class Loop:
    """A closed loop: arrivals that wait for completions. Whoever is dropped has left as well.

    Two kinds. A *limit* (no think times) on arrivals that are due at given times, as `vllm bench serve
    --max-concurrency`: a request that is due while `places` requests are in flight waits at the client, first come
    first served, and is sent, which is its arrival, when a place comes free. *Users* (with think times): each of them
    sends a request, waits until it has left, thinks, and sends the next one.

    Users are alike, so no request belongs to one of them: the i-th to arrive has the i-th lengths and tier, and who
    waits for the j-th departure then thinks for the think time of request ``places + j``. So requests stand in order
    of arrival, and all policies meet the same lengths and the same think times in the same order.
    """

    places: int
    """Most requests in flight, >= 1: the limit, or the number of users."""
    think: FloatArray | None = None
    """Think times, float64[n] (s), finite, >= 0; None: a limit. The first `places` lie before the first arrivals."""
    about: str = ""
    """Think times in a few words, for reports."""

    @property
    def description(self) -> str:
        """A few words for the line that says where requests come from."""
        if self.think is None:
            return f"closed loop, at most {self.places} requests in flight"
        return f"closed loop, {self.places} user{'s' * (self.places > 1)}, think {self.about}".rstrip()

    def head(self, n: int) -> Loop:
        """The loop of the first n requests."""
        return self if self.think is None else replace(self, think=self.think[:n])

    def check(self, n: int) -> Loop:
        """A copy with read-only arrays.

        Raises:
            InputError: no places, or think times that are not n finite numbers of seconds >= 0.
        """
        if isinstance(self.places, bool) or not isinstance(self.places, int | np.integer) or self.places < 1:
            raise InputError(f"closed loop: expected a whole number >= 1 of requests in flight, got {self.places!r}")
        if self.think is None:
            return self
        think: FloatArray = number_column("think", self.think, n).astype(np.float64) + 0.0
        bad = ~(np.isfinite(think) & (think >= 0.0))
        if bad.any():
            raise value_error("think", "finite seconds >= 0", think, bad)
        think.flags.writeable = False
        return replace(self, think=think)


def soonest(loop: Loop) -> FloatArray:
    """Arrival times (s) of users whose requests take no time, float64[n]: as early as any server can see them."""
    assert loop.think is not None
    think = loop.think
    present = sorted(think[: loop.places].tolist())
    arrival = np.empty(len(think))
    for i in range(len(think)):
        arrival[i] = heapq.heappop(present)
        if i + loop.places < len(think):
            heapq.heappush(present, arrival[i] + float(think[i + loop.places]))
    return arrival
