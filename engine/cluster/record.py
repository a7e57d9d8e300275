"""`ClusterRecord`: what happened to every request of a run on several replicas, and what the whole fleet did."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from engine.demand.requests import Requests
from engine.runs.goodput import Goodput
from engine.runs.metrics import summarize
from engine.runs.record import Record
from engine.runs.report import Report
from engine.runs.times import ratio

_LARGEST, _LARGEST_OF_TIER = ("now", "max_waiting", "last_duration"), ("max_gap",)
"""Entries of ROW and TIER of which a fleet has the largest of its replicas' instead of the sum."""


@dataclass(frozen=True, eq=False)
class ClusterRecord:
    """Everything that happened to every request."""

    router: str  # spec of the router
    requests: Requests
    replica: npt.NDArray[np.int32]  # int32[requests], where each was sent
    records: tuple[Record, ...]  # one for each replica, of the requests that it got

    def __repr__(self) -> str:
        """The router, what was served, medians; not the arrays (`summarize_cluster` has the numbers)."""
        return f"ClusterRecord({self.router}: {len(self.records)} replicas; {summarize(self.fleet()).outline()})"

    @property
    def sent(self) -> npt.NDArray[np.int64]:
        """Requests that each replica got, int64[replicas]."""
        return np.bincount(self.replica, minlength=len(self.records))

    def fleet(self) -> Record:
        """The run as that of one server: requests in the order of the trace, totals over the replicas.

        Its clock is the latest of theirs; seats and limits are those of the first one.
        """
        first = self.records[0]
        return Record(
            policy=self.router,
            requests=self.requests,
            config=first.config,
            request=self._in_order([record.request for record in self.records]),
            ledger=self._in_order([record.ledger for record in self.records]),
            tier=_totals([record.tier for record in self.records], _LARGEST_OF_TIER),
            gaps=np.stack([record.gaps for record in self.records]).sum(axis=0, dtype=np.int64),
            row=_totals([record.row for record in self.records], _LARGEST),
        )

    def _in_order(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Records of the replicas' requests in the order of the trace."""
        found = np.zeros(len(self.replica), parts[0].dtype)
        for j, part in enumerate(parts):
            found[self.replica == j] = part
        return found.view(np.recarray)


def _totals(parts: Sequence[np.ndarray], largest: Sequence[str]) -> np.ndarray:
    """Records of the same fields, added up; of some fields the largest."""
    found = np.zeros_like(parts[0])
    for name in found.dtype.names or ():
        values = np.stack([part[name] for part in parts])
        found[name] = values.max(axis=0) if name in largest else values.sum(axis=0)
    return found


@dataclass(frozen=True)
class ClusterReport:
    """The numbers of a run on several replicas."""

    fleet: Report
    """All requests together; shares of time and of KV are means over the replicas."""
    replicas: tuple[Report, ...]
    """Each replica by itself."""
    jain_replicas: float
    """Jain's index of the mean TTFT of the replicas that got requests: 1 where it is the same at all of them."""
    imbalance: float
    """Requests of the replica that got most, over those of the mean one."""


def summarize_cluster(record: ClusterRecord, *, warmup_s: float = 0.0, goodput: Goodput | None = None) -> ClusterReport:
    """Make the numbers of a run; `engine.runs.metrics` defines those of the fleet and of each replica.

    Args:
        record: what `simulate_cluster` returned.
        warmup_s: requests that arrive before this time (s) are not counted in the fleet's numbers.
        goodput: limits of vLLM's `request_goodput`, which there is only with them.

    Raises:
        InputError: the warm-up is negative, not finite, or not over when the run ends.
    """
    fleet = summarize(record.fleet(), warmup_s=warmup_s, goodput=goodput)
    replicas = tuple(summarize(one, goodput=goodput) for one in record.records)
    means = np.array([one.ttft.mean for one in replicas if one.ttft.count > 0])
    return ClusterReport(
        fleet=replace(fleet, busy_share=fleet.busy_share / len(replicas)),
        replicas=replicas,
        jain_replicas=ratio(float(means.sum()) ** 2, len(means) * float((means * means).sum())),
        imbalance=ratio(float(record.sent.max()), float(record.sent.mean())),
    )
