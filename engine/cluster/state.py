"""The state of a cluster as arrays: one line for each replica, beside the rows of their servers."""

from typing import Any, NamedTuple

import numpy as np
from numba import typeof

from engine.device.latency import LatencyModel
from engine.server.rows import new_rows
from engine.server.state import REQUEST, Server

IDLE, RUNNING, SLEEPING, PLANNING, HALTED = 0, 1, 2, 3, 4
"""What a replica does: nothing, for it has served all it got; a batch; waiting for its next arrival or wake time with
requests that its policy holds, or with none; about to plan; nothing any more, for its time is up."""

CLOCK = np.dtype(
    [
        ("due", "f8"),  # s, when something happens at the replica; inf: not before its next arrival
        ("seconds", "f8"),  # of the batch that runs
        ("doing", "i8"),  # IDLE ... HALTED
        ("kernel", "i8"),  # which of the kernels plans
        ("params", "i8"),  # where the memory of its policy begins: parameters,
        ("num_params", "i8"),
        ("lines", "i8"),  # lines of the requests,
        ("width", "i8"),  # cells of each of these,
        ("row", "i8"),  # cells of the server
        ("num_row", "i8"),
        ("table", "i8"),  # where its table of latencies begins
        ("num_table", "i8"),
    ],
    align=True,
)
"""When a replica goes on, and where its things are in the arrays that all share."""

LOAD = np.dtype(
    [
        ("sent", "i8"),  # requests that it has got
        ("prompt_left", "i8"),  # prompt tokens to compute of the requests present
        ("unanswered", "i8"),  # prompt tokens of the requests without a first token
        ("predicted", "f8"),  # predicted output tokens of the requests present that have a prediction
        ("unpredicted", "i8"),  # requests present without one
        ("generated", "i8"),  # output tokens that the requests present have so far
        ("blocks_wanted", "i8"),  # KV blocks that those without KV need to be admitted
        ("prefill_tokens", "i8"),  # of ROW, when the sums were last brought up to date ...
        ("decode_tokens", "i8"),
        ("finished", "i8"),
        ("moves", "i8"),  # ... and how often KV had been lost, swapped or found again, and requests been refused
    ],
    align=True,
)
"""Sums over the requests present at a replica, kept up to date so that nobody has to go through them."""

REPLICA = np.dtype(
    [
        # The router's own count, exact at any time:
        ("sent", "i8"),  # requests
        ("in_flight", "i8"),  # requests sent, and neither finished nor refused
        ("unanswered", "i8"),  # prompt tokens of those without a first token
        # What the replica has reported, as old as the view says:
        ("reported", "i8"),  # requests sent to it when it reported
        ("unanswered_then", "i8"),  # the router's count of `unanswered` when it did
        ("waiting", "i8"),  # requests without KV, those on their way included
        ("running", "i8"),  # requests that hold KV
        ("prompt_left", "i8"),  # prompt tokens to compute of all of them
        ("predicted", "f8"),  # predicted output tokens of those that have a prediction
        ("unpredicted", "i8"),  # requests that have none
        ("generated", "i8"),  # output tokens that they have so far
        ("free_blocks", "i8"),  # KV
        ("blocks_wanted", "i8"),  # KV blocks that the waiting ones need to be admitted
        ("batch_s", "f8"),  # s, its latest batch
        # What it is:
        ("num_blocks", "i8"),  # KV
        ("block_size", "i8"),  # tokens
        ("seats", "i8"),  # requests that may hold KV (max_num_seqs)
        ("prefill_s", "f8"),  # s per prompt token (`engine.cluster.prices`)
        ("decode_s", "f8"),  # s per output token
        ("label", "i8"),  # whose drawn numbers it has: ties do not go by the place in the list
    ],
    align=True,
)
"""One replica as a router sees it."""

ROUTING = np.dtype(
    [
        ("now", "f8"),  # s, arrival of the request
        ("as_of", "f8"),  # s, when the replicas reported
        ("index", "i8"),  # of the request in the trace
        ("seed", "i8"),  # of drawn numbers
    ],
    align=True,
)
"""One decision of a router."""

COURSE = np.dtype(
    [
        ("age", "f8"),  # s from one report to the next; 0: reports are as of now
        ("reported", "f8"),  # s, the last one
        ("horizon", "f8"),  # s; a batch that would start at or after it ends the run of its replica
        ("next", "i8"),  # request that arrives next
        ("decisions", "i8"),  # plans so far
        ("before", "i8"),  # plans when this piece of the loop began
        ("stop", "i8"),  # ... and the number at which it ends
        ("second", "i8"),  # in which it began
        ("replica", "i8"),  # that planned last
        ("choice", "i8"),  # replica that the next request goes to; -1: the router has not said
    ],
    align=True,
)
"""How far a run is."""


class RouterView(NamedTuple):
    """What a router may see. Arrays are live: read them, never write."""

    request: np.ndarray  # REQUEST[1], the request that arrives
    replica: np.ndarray  # REPLICA[replicas]
    row: np.ndarray  # ROUTING[1]


class RouterMemory(NamedTuple):
    """What a router may remember between decisions; zeroed at the start of a run except `params`."""

    params: np.ndarray  # float64[p], the router's parameters
    replica: np.ndarray  # float64[replicas, k], one line per replica
    row: np.ndarray  # float64[m]


class Memories(NamedTuple):
    """What the policies of all replicas remember, one behind the other (CLOCK says where)."""

    params: np.ndarray  # float64[all]
    request: np.ndarray  # float64[all]
    row: np.ndarray  # float64[all]


class Arrivals(NamedTuple):
    """The trace: what becomes of each request when it is sent to a replica."""

    request: np.ndarray  # REQUEST[requests]
    ledger: np.ndarray  # LEDGER[requests]
    output: np.ndarray  # int32[replicas, requests], output tokens at which it ends there
    replica: np.ndarray  # int32[requests], where it was sent


class Fleet(NamedTuple):
    """The replicas."""

    servers: Server  # rows (`engine.server.rows`)
    memories: Memories
    coefficient: np.ndarray  # COEFFICIENTS[replicas]
    table: np.ndarray  # float64[all, 2]
    clock: np.ndarray  # CLOCK[replicas]
    load: np.ndarray  # LOAD[replicas]
    course: np.ndarray  # COURSE[1]


def blank(shape: int, dtype: np.dtype) -> np.ndarray:
    """Records of zeros."""
    return np.zeros(shape, dtype).view(np.recarray)


def new_view(replicas: int) -> RouterView:
    """A view of so many replicas, empty."""
    return RouterView(blank(1, REQUEST), blank(replicas, REPLICA), blank(1, ROUTING))


def _types() -> tuple[Any, Any]:
    """Numba's types of a fleet and of a trace."""
    servers = new_rows(1, 1, 1)
    latency = LatencyModel(1.0, 0.0, 0.0, 0.0, 0.0).compiled()
    fleet = Fleet(
        servers,
        Memories(np.zeros(1), np.zeros(1), np.zeros(1)),
        latency.coefficient,
        latency.table,
        *(blank(1, dtype) for dtype in (CLOCK, LOAD, COURSE)),
    )
    trace = Arrivals(
        servers.visible.request[0], servers.hidden.ledger[0], np.zeros((1, 1), np.int32), np.zeros(1, np.int32)
    )
    return typeof(fleet), typeof(trace)


FLEET_TYPE, ARRIVALS_TYPE = _types()
ROUTER_VIEW_TYPE = typeof(new_view(1))
ROUTER_MEMORY_TYPE = typeof(RouterMemory(np.zeros(1), np.zeros((1, 1)), np.zeros(1)))
