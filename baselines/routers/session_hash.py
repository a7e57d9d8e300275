"""Sessions: all requests of a session go to one replica."""

from dataclasses import dataclass
from typing import ClassVar

from baselines.parameters import Requests, Seed
from engine.cluster.router import Router, drawn, router_kernel_of
from engine.cluster.state import RouterMemory, RouterView
from engine.compiled.random import uniform
from engine.compiled.records import params_of, record


@dataclass(frozen=True)
class SessionHash(Router):
    """The replica on which the hash of session and replica is largest: it stays there whatever its load.

    Which session a request belongs to is drawn, for traces do not say it. Rendezvous hashing: as with a ring, a replica
    that leaves takes only its own sessions with it.
    """

    sessions: Requests = 64
    """Sessions, each as likely."""
    salt: Seed = 0
    """Of the hash."""

    name: ClassVar[str] = "session_hash"
    source: ClassVar[str] = "vllm-project/production-stack session routing; vllm-router consistent_hash"
    sees: ClassVar[str] = "session"
    evidence: ClassVar[str] = "public code; another consistent hash, sessions drawn"


_params = record(params_of(SessionHash))


@router_kernel_of(SessionHash)
def _route(view: RouterView, memory: RouterMemory) -> int:
    p, best, largest = _params(memory.params), 0, -1.0
    session = int(drawn(view, 0) * p.sessions)
    for j in range(view.replica.shape[0]):
        value = uniform(int(p.salt), (session << 20) + view.replica[j].label)
        if value > largest:
            best, largest = j, value
    return best
