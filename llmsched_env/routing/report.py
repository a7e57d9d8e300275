"""The numbers of one episode of a cluster: those of `llmsched_env.episode` over all replicas together."""

from typing import Any

import numpy as np

from engine.cluster.clusters import Cluster
from engine.cluster.state import blank
from engine.config import EngineConfig
from engine.server.state import FUTURE, LEDGER, REQUEST, ROW, TIER, WAITING, Hidden, Server, View
from llmsched_env.episode import episode_report

ADDED = ("finished", "dropped", "iterations", "evictions")
"""Entries of ROW that are added up over the replicas."""


def cluster_report(cluster: Cluster, now: float, config: EngineConfig, tiers: list[str]) -> dict[str, Any]:
    """TTFT, gaps, goodput and load of a fleet that is looked at now; times in ms unless the key ends in _s.

    Args:
        cluster: one of them.
        now: s, to which those without a first token have waited.
        config: semantics of the first replica.
        tiers: their names.
    """
    report = episode_report(_as_one(cluster, now), config, tiers)
    sent = cluster.fleet.load["sent"]
    return report | {"imbalance": float(sent.max() / sent.mean()) if sent.any() else 1.0}


def _as_one(cluster: Cluster, now: float) -> Server:
    """The replicas as one server, as far as a report looks at it."""
    servers, trace = cluster.fleet.servers, cluster.trace
    sent = int(cluster.fleet.course["next"][0])
    request, ledger = blank(sent, REQUEST), blank(sent, LEDGER)
    for j, count in enumerate(cluster.fleet.load["sent"].tolist()):
        places = np.flatnonzero(trace.replica[:sent] == j)
        request[places], ledger[places] = servers.visible.request[j, :count], servers.hidden.ledger[j, :count]
    request["status"][request["status"] == FUTURE] = WAITING  # sent to a replica that runs a batch
    row, tier = blank(1, ROW), blank(servers.hidden.tier.shape[1], TIER)
    for name in ADDED:
        row[name] = servers.visible.row[name].sum()
    for name in TIER.names or ():
        tier[name] = (
            servers.hidden.tier[name].max(axis=0) if name == "max_gap" else servers.hidden.tier[name].sum(axis=0)
        )
    row["now"], row["next_arrival"], row["num_requests"] = now, sent, len(trace.request)
    gaps = servers.hidden.gaps.sum(axis=0, dtype=np.int64)
    visible, hidden = servers.visible, servers.hidden
    return servers._replace(
        visible=View(request, visible.queue[0], visible.running[0], row),
        hidden=Hidden(ledger, hidden.output[0], tier, gaps, hidden.refresh[0], hidden.release[0]),
    )
