"""Times of the requests of a record, and who kept which deadline; `engine.runs.metrics` says what each means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine.runs.distribution import Floats
from engine.runs.goodput import Goodput
from engine.server.state import DROPPED, FINISHED, FUTURE

if TYPE_CHECKING:
    from engine.runs.record import Record

Mask = npt.NDArray[np.bool_]


def ratio(part: float | np.integer[Any], whole: float) -> float:
    """A share or a rate; nan where there is nothing to divide by."""
    return float(part) / float(whole) if whole > 0 else math.nan


def _ttft(request: np.ndarray, ledger: np.ndarray, now: float, ttft_at: str) -> Floats:
    if ttft_at == "prompt_done":
        return np.asarray(ledger["prompt_done"] - request["arrival"])
    first = ledger["first_token"]
    return np.asarray(np.where(first >= 0.0, first, now) - request["arrival"])


def ttft_of(request: np.ndarray, ledger: np.ndarray, now: float, ttft_at: str = "first_token") -> Floats:
    """TTFT (s) of the requests of a server as `engine.runs.metrics` defines it, in order of arrival.

    The one implementation: of reports over whole runs, and of the environment's over episodes.

    Args:
        request: REQUEST records; those that have not arrived do not count.
        ledger: their LEDGER records.
        now: the server's clock (s), to which those without a first token have waited.
        ttft_at: `EngineConfig.ttft_at`; with prompt_done only finished requests count.
    """
    counted = request["status"] == FINISHED if ttft_at == "prompt_done" else request["status"] != FUTURE
    if not counted.all():
        request, ledger = request[counted], ledger[counted]
    return _ttft(request, ledger, now, ttft_at)


def slo_met(request: np.ndarray, ledger: np.ndarray, ttft: Floats, deadline_s: Floats) -> tuple[Mask, Mask]:
    """Which requests attained their TTFT and which their TBT, as `engine.runs.metrics` defines it; both: the SLO.

    Args:
        request: REQUEST records of requests that have arrived.
        ledger: their LEDGER records.
        ttft: of each (s).
        deadline_s: TTFT deadline of each (s).
    """
    ttft_met = (ledger["first_token"] >= 0.0) & (ttft <= deadline_s)
    return ttft_met, (request["status"] == FINISHED) & (ledger["late_gaps"] == 0)


def arrival_rate_of(arrival: Floats) -> float:
    """Requests/s at which requests came, from their sorted times (s); nan for fewer than two, or all at one time."""
    span = float(arrival[-1] - arrival[0]) if len(arrival) else 0.0
    return ratio(len(arrival) - 1, span)


class Times:
    """Columns of a record, contiguous, and the masks that select them; one value per counted request."""

    def __init__(self, record: Record, warmup_s: float) -> None:
        counted = (record.request["status"] != FUTURE) & (record.request["arrival"] >= warmup_s)
        request, ledger = record.request[counted], record.ledger[counted]
        self.end = float(record.row["now"][0])
        self.tier = request["tier"].copy()
        self.arrival = request["arrival"].copy()
        # Tokens that the user has of a finished request: fewer than it wanted where it reached max_model_len, and not
        # more where an eviction made the server deliver some again.
        self.output = np.minimum(ledger["output"], ledger["delivered"])
        self.prompt = ledger["original_prompt"].copy()
        self.delivered = ledger["delivered"].copy()
        self.completed = ledger["completed"].copy()
        self.first_token = ledger["first_token"].copy()
        self.finished = request["status"] == FINISHED
        self.at_length = self.finished & (self.delivered < ledger["output"])
        self.dropped = request["status"] == DROPPED
        started = ledger["first_scheduled"] >= 0.0
        # A dropped request was never started, though its ledger says when it was dropped.
        started &= ~self.dropped | (ledger["first_scheduled"] < self.completed)
        self.wait = np.where(started, ledger["first_scheduled"], self.end) - self.arrival
        self.e2e = self.completed - self.arrival
        self.ttft = _ttft(request, ledger, self.end, record.config.ttft_at)
        self.has_ttft = self.finished if record.config.ttft_at == "prompt_done" else np.ones(len(request), np.bool_)
        deadline = np.array([tier.ttft_s for tier in record.requests.tiers])[self.tier]
        self.ttft_met, self.tbt_met = slo_met(request, ledger, self.ttft, deadline)
        self.good = self.ttft_met & self.tbt_met
        self.due = self.arrival + deadline

    def tpot(self, chosen: Mask) -> Floats:
        """Seconds per output token behind the first, of those of the chosen that are finished and have two."""
        chosen = chosen & self.finished & (self.output > 1)
        span = self.completed[chosen] - self.first_token[chosen]
        return np.asarray(span / (self.output[chosen] - 1))

    def arrival_rate(self) -> float:
        """Requests/s at which the counted requests came."""
        return arrival_rate_of(self.arrival)

    def max_concurrent(self) -> int:
        """Most finished requests present at one time, each from its arrival to before its completion."""
        gone = np.searchsorted(np.sort(self.completed[self.finished]), self.arrival[self.finished], side="right")
        return int((np.arange(1, len(gone) + 1) - gone).max(initial=0))

    def request_goodput(self, limits: Goodput | None, duration_s: float) -> float:
        """Rate of the requests within vLLM's limits; nan without limits."""
        if limits is None:
            return math.nan
        tpot = np.zeros(len(self.arrival))
        tpot[self.finished & (self.output > 1)] = self.tpot(np.ones(len(tpot), np.bool_))
        done = self.finished
        return ratio(limits.count(self.ttft[done], tpot[done], self.e2e[done]), duration_s)

    def kept_up_share(self) -> float:
        """Share of the counted requests that are not behind at the time of the last arrival."""
        if len(self.arrival) == 0:
            return math.nan
        last = self.arrival[-1]
        served = (self.first_token >= 0.0) & (self.first_token <= last)
        behind = ~served & (self.due < last) | self.dropped
        return 1.0 - float(np.count_nonzero(behind)) / len(self.arrival)

    def jain_index(self) -> float:
        """Jain, Chiu, Hawe 1984: (sum x)^2 / (n sum x^2), x = output tokens per second of presence."""
        ended = np.where(self.finished | self.dropped, self.completed, self.end)
        present = ended - self.arrival
        x = np.divide(self.delivered, present, out=np.zeros(len(present)), where=present > 0.0)
        return ratio(float(x.sum()) ** 2, len(x) * float((x * x).sum()))  # not x @ x: BLAS wakes its threads
