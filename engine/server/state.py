"""The state of many servers as arrays: one row is one server.

A request is one fixed-size record, so that the few numbers a scheduler and the engine touch in an iteration share a
cache line. What only the engine may know (the true output length) and what only reports need lives in a second
record, the *ledger*, which a policy never receives: `View` carries everything a policy may see.
"""

from typing import NamedTuple

import numpy as np
from numba import typeof

from engine.config import EngineConfig
from engine.demand.forecast import Forecast
from engine.demand.requests import Requests
from engine.errors import InputError
from engine.server.features import new_features

FUTURE, WAITING, RUNNING, FINISHED, DROPPED = 0, 1, 2, 3, 4
"""Life of a request: not arrived, queued without KV, holding KV, served, left unserved."""

EVICT, DROP, SWAP, SWAP_COMPRESSED = -1, -2, -3, -4
"""Plan entries that are not token counts: take the KV away, refuse to serve, move the KV to the host's memory, the same
with 8-bit numbers in half the space."""

GROW = -(2**31 - 1)
"""`reserve` of an entry that admits a request with the KV blocks of its chunk: each later chunk takes its own."""

REQUEST = np.dtype(
    [
        ("arrival", "f8"),  # s
        ("last_token", "f8"),  # s, end of the iteration that yielded the latest token (or the prompt); -1 before
        ("tbt", "f8"),  # s, deadline of every gap between tokens
        ("ttft", "f8"),  # s, deadline of the first token
        ("prediction", "f4"),  # latest prediction of all output tokens, nan = none
        ("prompt", "i4"),  # tokens to prefill (after an eviction: original prompt + generated)
        ("prefilled", "i4"),  # of those, done; a decode is a running request with prefilled == prompt
        ("length", "i4"),  # tokens known so far, prompt + generated: what the KV of the next decode must hold
        ("generated", "i4"),  # output tokens so far
        ("blocks", "i4"),  # KV blocks held
        ("host", "i4"),  # half KV blocks held in the host's memory
        ("last_run", "i4"),  # index of the latest iteration that this request was part of, -1 before
        ("evictions", "i4"),  # times the KV was lost
        ("late_gaps", "i4"),  # gaps over the deadline so far
        ("kept", "i4"),  # full KV blocks that it had when it lost its KV, to be found again (`kv.found_again`)
        ("returned", "i8"),  # `ROW.returned` behind them
        ("max_gap", "f8"),  # s, longest gap between two tokens so far
        ("tier", "i1"),  # index into the tiers
        ("strict", "i1"),  # 1: paying user
        ("status", "i1"),  # FUTURE ... DROPPED
        ("has_token", "i1"),  # 1 once output token 1 was delivered
        ("reserved", "i1"),  # 1: admitted with KV for max_model_len tokens, takes no more
    ],
    align=True,
)

LEDGER = np.dtype(
    [
        ("first_scheduled", "f8"),  # s, start of the first iteration of the request; -1 before (so below)
        ("prompt_done", "f8"),  # s, last time the prompt was completed
        ("first_token", "f8"),  # s, end of the iteration that yielded output token 1
        ("completed", "f8"),  # s, end of the last iteration (or time of the drop)
        ("max_gap", "f8"),  # s, longest gap between two tokens (from `close` on, and so below)
        ("late_gaps", "i4"),  # gaps over the deadline
        ("delivered", "i4"),  # tokens that reached the user (with regeneration: counted again)
        ("original_prompt", "i4"),  # tokens
        ("output", "i4"),  # true output tokens (a request that reaches max_model_len gets fewer)
        ("refresh", "i8"),  # place of the request's first refreshed prediction in `Hidden.refresh`
    ],
    align=True,
)

ROW = np.dtype(
    [
        ("now", "f8"),  # s
        ("last_duration", "f8"),  # s, previous iteration
        ("busy", "f8"),  # s spent in iterations
        ("kv_time", "f8"),  # block-seconds in use
        ("queue_time", "f8"),  # request-seconds without a first token (sums to the total TTFT)
        ("present_time", "f8"),  # request-seconds from arrival to completion
        ("next_arrival", "i8"),  # index of the next request to arrive
        ("num_requests", "i8"),
        ("places", "i8"),  # closed loop: most requests in flight, 0: an open one
        ("thinks", "i8"),  # closed loop: 1 of users who think, 0 of a limit
        ("released", "i8"),  # requests whose arrival time is known; those behind wait for a place
        ("num_waiting", "i8"),  # filled part of `queue`
        ("num_running", "i8"),  # filled part of `running`
        ("num_prefilling", "i8"),  # running requests whose prompt is not done
        ("no_first_token", "i8"),  # requests present without output token 1
        ("free_blocks", "i8"),
        ("num_blocks", "i8"),
        ("returned", "i8"),  # KV blocks that have become free again, without those found again
        ("free_host", "i8"),  # half KV blocks for which the host has room; 0 where swapping is off
        ("block_size", "i8"),  # tokens
        ("watermark_blocks", "i8"),
        ("max_num_seqs", "i8"),
        ("max_batched_tokens", "i8"),
        ("max_model_len", "i8"),
        ("prompt_emits", "i8"),  # EngineConfig flags as 0/1
        ("eviction_keeps_output", "i8"),
        ("decode_needs_free_block", "i8"),
        ("replans_at_once", "i8"),
        ("async_scheduling", "i8"),
        (
            "leaving",
            "i8",
        ),  # with it: requests that finished in the previous iteration, and what they hold until the next
        ("leaving_blocks", "i8"),
        ("finds_own", "i8"),  # 1: a prefix cache holds what requests lost
        ("refresh_every", "i8"),  # output tokens between predictions of a request, 0: one prediction only
        ("stale_half", "i8"),  # rule for outlived predictions, see `remaining`
        ("iterations", "i8"),  # completed so far; the next one has this index
        ("finished", "i8"),
        ("dropped", "i8"),
        ("evictions", "i8"),
        ("prefill_tokens", "i8"),  # processed, recomputation included
        ("decode_tokens", "i8"),
        ("recomputed_tokens", "i8"),  # KV tokens lost by evictions and not found again
        ("reused_tokens", "i8"),  # KV tokens lost by evictions and found again
        ("swaps", "i8"),  # times that KV went to the host
        ("swapped_out", "i8"),  # half KV blocks moved to the host
        ("swapped_in", "i8"),  # half KV blocks moved back
        ("moved", "i8"),  # half KV blocks moved either way since the previous iteration
        ("batch_requests", "i8"),  # sum of batch sizes
        ("batch_tokens", "i8"),  # tokens of the previous iteration
        ("max_waiting", "i8"),
    ],
    align=True,
)

TIER = np.dtype(
    [
        ("late_gaps", "i8"),  # gaps between tokens over the deadline
        ("gap_sum", "f8"),  # s, all gaps
        ("late_sum", "f8"),  # sum over late gaps of gap / deadline - 1
        ("max_gap", "f8"),  # s
        ("first_tokens", "i8"),
        ("finished", "i8"),
        ("good", "i8"),  # finished, first token and every gap in time
    ],
    align=True,
)

ENTRY = np.dtype(
    [
        ("request", "i4"),  # index of the request
        ("tokens", "i4"),  # 1 decode, n prefill chunk, EVICT ... SWAP_COMPRESSED
        (
            "reserve",
            "i4",
        ),  # KV blocks to hold from admission on: at least these, 0: the prompt's, < 0: no more ever, GROW
    ],
    align=True,
)

DRAFT = np.dtype(
    [
        ("tokens", "i8"),  # of the batch
        ("free", "i8"),  # KV blocks free once the plan is done
        ("seats", "i8"),  # requests that hold KV then
        ("victims", "i8"),  # requests whose KV the plan takes away
        ("taken", "i8"),  # requests that it takes from the queue: admits or drops
        ("returned", "i8"),  # `ROW.returned` then
        ("number", "i8"),  # of this plan, counted from the start of the run
    ],
    align=True,
)

GAP_BUCKETS_PER_OCTAVE = 512
GAP_MIN_EXPONENT, GAP_MAX_EXPONENT = -14, 12  # 61 us ... 4096 s
NUM_GAP_BUCKETS = (GAP_MAX_EXPONENT - GAP_MIN_EXPONENT) * GAP_BUCKETS_PER_OCTAVE + 2
"""Gap histogram: bucket edges 2**e (1 + k/512), so a percentile read from it is within 0.2 % of the exact one."""


class View(NamedTuple):
    """What a policy may see of one server. Arrays are live: read them, never write."""

    request: np.ndarray  # REQUEST[requests]; only those that arrived may be read
    queue: np.ndarray  # int32[requests]; queue[:num_waiting] are the waiting requests, head first
    running: np.ndarray  # int32[requests]; running[:num_running] hold KV, in order of arrival
    row: np.ndarray  # ROW[1]


class Plan(NamedTuple):
    """The next iteration: a list of (request, tokens), in the order in which the engine takes them, with its books.

    What is not in the list is for policies only: the engine does not look at it.
    """

    entry: np.ndarray  # ENTRY[capacity]
    size: np.ndarray  # int64[1], filled part of `entry`
    wake: np.ndarray  # float64[1], s: with an empty plan, wake at this time (inf: at the next arrival)
    draft: np.ndarray  # DRAFT[1], what the batch and the server will be like
    victim: np.ndarray  # int32[requests]; victim[:draft.victims] lose their KV, in this order
    named: np.ndarray  # int64[requests], number of the latest plan that serves or drops the request


class Memory(NamedTuple):
    """What a policy may remember between decisions; zeroed at the start of a run except `params`."""

    params: np.ndarray  # float64[p], the policy's parameters
    request: np.ndarray  # float64[requests, k], one line per request
    row: np.ndarray  # float64[m]


class Hidden(NamedTuple):
    """What only the engine and the report may see of one server."""

    ledger: np.ndarray  # LEDGER[requests]
    output: np.ndarray  # int32[requests], output tokens at which a request ends (compact: checked at every token)
    tier: np.ndarray  # TIER[tiers]
    gaps: np.ndarray  # int32[tiers, NUM_GAP_BUCKETS], histogram of gaps
    refresh: np.ndarray  # float32[k], refreshed predictions (`Forecast.total`)
    release: np.ndarray  # float64[requests], closed loop: s, when a request is due, or think time before it


class Server(NamedTuple):
    """One server, everything together: what `begin`, `finish` and the loops work on."""

    visible: View
    hidden: Hidden
    plan: Plan
    features: np.ndarray  # FEATURES[1] of the batch that `begin` took


def _records(shape: int | tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return np.zeros(shape, dtype).view(np.recarray)


def new_plan(num_requests: int) -> Plan:
    """A plan with room for an eviction and a chunk of every request (`engine.server.plan.clear` opens it)."""
    return Plan(
        _records(2 * num_requests + 1, ENTRY),
        np.zeros(1, np.int64),
        np.full(1, np.inf),
        _records(1, DRAFT),
        np.zeros(num_requests, np.int32),
        np.zeros(num_requests, np.int64),
    )


def new_server(num_requests: int, num_tiers: int, num_refreshes: int = 0) -> Server:
    """Memory for one server that will meet at most `num_requests` requests; `load` fills it."""
    view = View(
        _records(num_requests, REQUEST),
        np.zeros(num_requests, np.int32),
        np.zeros(num_requests, np.int32),
        _records(1, ROW),
    )
    hidden = Hidden(
        _records(num_requests, LEDGER),
        np.zeros(num_requests, np.int32),
        _records(num_tiers, TIER),
        np.zeros((num_tiers, NUM_GAP_BUCKETS), np.int32),
        np.zeros(num_refreshes, np.float32),
        np.zeros(num_requests),
    )
    return Server(view, hidden, new_plan(num_requests), new_features())


def load(server: Server, config: EngineConfig, requests: Requests) -> None:
    """Put a server at time 0 in front of `requests`, nothing served yet.

    Args:
        server: memory from `new_server` (or a row of it) with room for exactly ``len(requests)`` requests.
        config: limits and semantics.
        requests: the whole trace; all randomness of the run is in it.

    Raises:
        InputError: predictions that are refreshed, and no memory for them.
    """
    rows, ledger = server.visible.request, server.hidden.ledger
    for array in (rows, ledger, server.visible.row, server.hidden.tier):
        array.view(np.uint8)[...] = 0
    server.hidden.gaps[...] = 0
    for name in ("arrival", "prediction", "prompt", "tier"):
        rows[name] = getattr(requests, name)
    rows["length"] = requests.prompt
    rows["last_token"] = -1.0
    rows["last_run"] = -1
    for name in ("tbt", "ttft", "strict"):
        attribute = name if name == "strict" else f"{name}_s"
        rows[name] = np.array([getattr(t, attribute) for t in requests.tiers])[requests.tier]
    server.hidden.output[...] = config.served_output(requests.prompt, requests.output)
    ledger["output"] = requests.output
    ledger["original_prompt"] = requests.prompt
    for name in ("first_scheduled", "prompt_done", "first_token", "completed"):
        ledger[name] = -1.0
    set_limits(server.visible.row, config)
    server.visible.row["num_requests"] = len(requests)
    _load_loop(server, requests)
    _load_forecast(server, requests.forecast)
    server.plan.draft.view(np.uint8)[...] = 0
    server.plan.named[...] = 0


def _load_loop(server: Server, requests: Requests) -> None:
    """Requests beyond the places of a closed loop have no arrival time before somebody leaves."""
    loop, row = requests.loop, server.visible.row
    row["released"] = len(requests)
    server.hidden.release[...] = 0.0
    if loop is None:
        return
    server.hidden.release[...] = requests.arrival if loop.think is None else loop.think
    row["places"], row["thinks"] = loop.places, loop.think is not None
    row["released"] = min(loop.places, len(requests))
    server.visible.request["arrival"][loop.places :] = np.inf
    if loop.think is not None:
        server.visible.request["arrival"][: loop.places] = np.sort(loop.think[: loop.places])


def _load_forecast(server: Server, forecast: Forecast) -> None:
    row = server.visible.row
    row["refresh_every"], row["stale_half"] = forecast.every, forecast.stale_half
    if forecast.every:
        if server.hidden.refresh.shape != forecast.total.shape:
            raise InputError(
                f"prediction {forecast.channel!r}: expected one prediction per request, got refreshed ones"
            )
        server.hidden.ledger["refresh"] = forecast.first[:-1]
        server.hidden.refresh[...] = forecast.total


def set_limits(row: np.ndarray, config: EngineConfig) -> None:
    """Write the limits and the semantic flags of `config` into fresh ROW records (any number of rows)."""
    for name in ("num_blocks", "block_size", "watermark_blocks", "max_num_seqs", "max_batched_tokens"):
        row[name] = getattr(config, name)
    for name in (
        "max_model_len",
        "prompt_emits",
        "eviction_keeps_output",
        "decode_needs_free_block",
        "replans_at_once",
        "async_scheduling",
    ):
        row[name] = getattr(config, name)
    row["finds_own"] = config.prefix_cache == "own"
    row["free_blocks"] = config.num_blocks
    row["free_host"] = config.host_half_blocks


VIEW_TYPE = typeof(new_server(1, 1).visible)
PLAN_TYPE = typeof(new_plan(1))
SERVER_TYPE = typeof(new_server(1, 1))
MEMORY_TYPE = typeof(Memory(np.zeros(1), np.zeros((1, 1)), np.zeros(1)))
