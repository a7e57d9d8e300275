"""How many requests are at each replica while the requests of a run come."""

from dataclasses import dataclass

import numpy as np

from engine.cluster.record import ClusterRecord
from engine.runs.record import Record
from engine.server.state import DROPPED

POINTS, FEWEST, ENTRIES = 240, 24, 16_000
"""Times at which a run is looked at; fewer where replicas are so many that there were more entries than this."""


@dataclass(frozen=True)
class Presence:
    """Requests present at each replica at even times."""

    step_s: float
    """From one time to the next; the first is 0, the last that of the last arrival."""
    counts: tuple[tuple[int, ...], ...]
    """By replica and time."""


def presence_of(record: ClusterRecord) -> Presence:
    """The requests present at each replica of a run; those that are refused are nowhere."""
    points = max(FEWEST, min(POINTS, ENTRIES // len(record.records)))
    end = float(record.requests.arrival[-1])
    times = np.linspace(0.0, end, points)
    return Presence(end / (points - 1), tuple(tuple(_present(one, times).tolist()) for one in record.records))


def _present(record: Record, times: np.ndarray) -> np.ndarray:
    """Requests of one server that have arrived and not finished, int64[times]."""
    stays = record.request["status"] != DROPPED
    completed = record.ledger["completed"][stays]
    arrived = np.searchsorted(record.requests.arrival[stays], times, side="right")
    left = np.searchsorted(np.sort(completed[completed >= 0.0]), times, side="right")
    return np.asarray(arrived - left)
