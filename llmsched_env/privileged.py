"""What only the simulator knows of a server's future, for critics: work left, KV that comes free, work on its way.

A critic that sees it explains most of what a queue will cost, where one on the observation cannot: the rest of the cost
is the luck of outputs and arrivals (input-dependent baselines, Mao et al., *Variance reduction for reinforcement
learning in input-driven environments*, ICLR 2019; asymmetric actor-critic, Pinto et al., RSS 2018). It is for training
only: a policy never gets it, and no bundle has it.

All entries are free of scale: work is in units of the mean request of the workload, by the terms of the device's
profile that grow with tokens (`Prices`), windows are in the time that a device needs for so many of them.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from engine.compiled.jit import hot, inner
from engine.compiled.records import record
from engine.demand.requests import Requests
from engine.device.latency import LatencyModel, iteration_seconds
from engine.server.features import EMPTY, Features, new_features, store
from engine.server.state import View

WINDOWS = (36.0, 72.0, 144.0, 288.0, 576.0)
"""Looks ahead, in the work of so many mean requests."""
TOKENS_LEFT = (50, 150, 400)
"""Decodes with at most so many tokens left free their KV soon."""

PRIVILEGED = np.dtype(
    (
        np.record,
        [
            ("queued_prefill", "f4"),  # sqrt of the prefill work in the queue
            ("started_prefill", "f4"),  # sqrt of what the started prompts lack
            ("decoding", "f4"),  # decode work of those who decode, / 12
            ("to_decode", "f4"),  # decode work of all others present, / 5
            ("kv_held", "f4"),  # blocks x tokens left, / (blocks of the server x 250)
            ("kv_use", "f4"),  # 3 x share of the KV blocks in use
            ("seats", "f4"),  # 3 x share of max_num_seqs
            ("no_first_token", "f4"),  # sqrt of the requests without a first token
            ("decodes", "f4"),  # 3 x share of max_num_seqs
            ("freed", "f4", (len(TOKENS_LEFT),)),  # 4 x share of the blocks that come free within TOKENS_LEFT
            ("tight", "f4"),  # decodes of the tightest tiers, / 4
            ("load", "f4"),  # 3 x expected work that arrives in the time it takes
            ("usual_cost", "f4"),  # log10 of the reference policy's mean cost
            ("arriving", "f4", (len(WINDOWS),)),  # work that arrives within WINDOWS, standard deviations above its mean
        ],
    )
)
"""The entries by name."""
PRIVILEGED_SIZE = PRIVILEGED.itemsize // 4
"""How many there are."""
PRIVILEGED_LIMIT = 10.0
"""Every entry is clipped to +- this."""

PRICES = np.dtype(
    [
        ("token", "f8"),  # s per token of a large batch through the linear layers
        ("pair", "f8"),  # s per (query, key) pair of a prompt
        ("read", "f8"),  # s per (token, KV token before or in its chunk) of a prompt: reads by tiles of queries
        ("step", "f8"),  # s per token of a decode
        ("context", "f8"),  # s per KV token that a decode reads
        ("unit", "f8"),  # s, work of a mean request
        ("rate", "f8"),  # requests/s
        ("spread", "f8"),  # s, root of the mean square of a request's work
        ("tight", "f8"),  # s, TBT deadlines up to this are tight
        ("usual_cost", "f8"),  # mean cost of the reference policy, per s
    ],
    align=True,
)
"""What tokens cost on a device, and what the workload is like: one record for each world."""
prices_of = record(PRICES)
LARGE_BATCH = 2048.0
"""Tokens of the batch by which a token is priced."""


class Prices(NamedTuple):
    """Seconds by which work is counted: what of a latency model grows with tokens."""

    token: float
    pair: float
    read: float
    step: float
    context: float


def prices(model: LatencyModel) -> Prices:
    """The prices of a device: the slope of its linear layers at a large batch, and its terms for attention."""
    compiled, features = model.compiled(), new_features()

    def seconds(f: Features) -> float:
        store(f, 0.0, features)
        return float(iteration_seconds(compiled, features))

    most, half = LARGE_BATCH, 0.5 * LARGE_BATCH
    one = EMPTY._replace(requests=1.0, decodes=1.0)
    token = (seconds(one._replace(tokens=most)) - seconds(one._replace(tokens=half))) / (most - half)
    attention = model.attention
    return Prices(token, attention.pair, attention.read, token + attention.request, attention.context)


def describe(model: LatencyModel, requests: Requests, rate: float) -> np.ndarray:
    """PRICES[1] of a device and a workload, by a long trace of it; the usual cost is still 1."""
    found = np.zeros(1, PRICES)
    for name, value in prices(model)._asdict().items():
        found[name] = value
    work = request_work(found, requests.prompt.astype(float), requests.output.astype(float))
    found["unit"], found["spread"] = work.mean(), np.sqrt((work**2).mean())
    found["rate"], found["usual_cost"] = rate, 1.0
    found["tight"] = 2.0 * min(tier.tbt_s for tier in requests.tiers)
    return found


def request_work(price: np.ndarray, prompt: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Work of whole requests in seconds, float64[n].

    Args:
        price: PRICES[1].
        prompt: tokens, float64[n].
        output: tokens, float64[n].
    """
    p = price[0]
    prefill = prompt * (p["token"] + prompt * (0.5 * p["pair"] + p["read"]))
    return np.asarray(prefill + output * (p["step"] + p["context"] * (prompt + 0.5 * output)))


def work_until(price: np.ndarray, prompt: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Work of all requests of a trace before each of them, float64[requests + 1], s."""
    return np.concatenate([np.zeros(1), np.cumsum(request_work(price, prompt, output))])


def privileged_names() -> tuple[str, ...]:
    """Name of each entry."""
    fields: Any = PRIVILEGED.fields
    return tuple(
        name if kind.shape == () else f"{name}_{k}"
        for name, (kind, *_) in fields.items()
        for k in range(int(np.prod(kind.shape, initial=1)))
    )


@inner
def _prefill(p: np.record, done: float, n: float) -> float:
    """Seconds of `n` tokens of a prompt of which `done` are processed."""
    return float(p.token * n + p.pair * n * (done + 0.5 * n) + p.read * n * (done + n))


@inner
def _decode(p: np.record, length: float, left: float) -> float:
    """Seconds of the `left` tokens that come after `length`."""
    return float(left * (p.step + p.context * (length + 0.5 * left)))


@inner
def _arrived(request: np.ndarray, first: int, at: float) -> int:
    """How many requests of a trace arrive until a time, of which the first are known to have."""
    low, high = first, request.shape[0]
    while low < high:
        middle = (low + high) // 2
        if request[middle].arrival <= at:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def _show_running(view: View, e: int, output: np.ndarray, p: np.record, o: np.record) -> None:
    """Those who hold KV: work left, blocks and when they come free."""
    row = view.row[e, 0]
    for j in range(row.num_running):
        i = view.running[e, j]
        r = view.request[e, i]
        left = output[e, i] - r.generated
        o.kv_held += r.blocks * left
        if r.prefilled < r.prompt:
            o.started_prefill += _prefill(p, r.prefilled, r.prompt - r.prefilled)
            o.to_decode += _decode(p, r.length, left)
            continue
        o.decoding += _decode(p, r.length, left)
        o.decodes += 1.0
        for k in range(len(TOKENS_LEFT)):
            if left <= TOKENS_LEFT[k]:
                o.freed[k] += r.blocks
        if r.tbt <= p.tight:
            o.tight += 1.0


@inner
def _show_arriving(view: View, e: int, work: np.ndarray, p: np.record, o: np.record) -> None:
    """The work that is on its way on this trace, in standard deviations above what a Poisson stream would bring."""
    row, request = view.row[e, 0], view.request[e]
    for k in range(len(WINDOWS)):
        window = WINDOWS[k] * p.unit
        last = _arrived(request, row.next_arrival, row.now + window)
        more = work[last] - work[row.next_arrival] - p.rate * p.unit * window
        o.arriving[k] = more / (p.spread * np.sqrt(p.rate * window))


class Known(NamedTuple):
    """What the simulator knows of rows of servers."""

    view: View  # arrays with a leading axis
    output: np.ndarray  # int32[rows, requests], true output tokens
    work: np.ndarray  # float64[rows, requests + 1], `work_until` of each row's trace
    price: np.ndarray  # float64[worlds, cells of PRICES], what tokens cost
    world: np.ndarray  # int64[rows], the world that each row is in


@functools.partial(hot, nogil=True)
def foresee(known: Known, out: np.ndarray, first: int, last: int) -> None:
    """Write the privileged entries of some rows; threads may call it at the same time for different ones.

    Args:
        known: of all rows.
        out: float32[rows, PRIVILEGED_SIZE], of which rows `first` to `last` - 1 are overwritten.
        first: of the rows.
        last: the one behind them.
    """
    view, output, work, price, world = known
    for e in range(first, last):
        p = prices_of(price[world[e]])
        row, o = view.row[e, 0], out[e].view(PRIVILEGED)[0]
        out[e] = 0.0
        for k in range(row.num_waiting):
            i = view.queue[e, k]
            r = view.request[e, i]
            o.queued_prefill += _prefill(p, 0.0, r.prompt)
            o.to_decode += _decode(p, r.length, output[e, i] - r.generated)
        _show_running(view, e, output, p, o)
        _show_arriving(view, e, work[e], p, o)
        o.queued_prefill = np.sqrt(o.queued_prefill / p.unit)
        o.started_prefill = np.sqrt(o.started_prefill / p.unit)
        o.decoding, o.to_decode = o.decoding / (12.0 * p.unit), o.to_decode / (5.0 * p.unit)
        o.kv_held /= row.num_blocks * 250.0
        o.kv_use = 3.0 * (1.0 - row.free_blocks / row.num_blocks)
        o.seats, o.decodes = 3.0 * row.num_running / row.max_num_seqs, 3.0 * o.decodes / row.max_num_seqs
        o.no_first_token, o.tight = np.sqrt(float(row.no_first_token)), o.tight / 4.0
        for k in range(len(TOKENS_LEFT)):
            o.freed[k] *= 4.0 / row.num_blocks
        o.load, o.usual_cost = 3.0 * p.rate * p.unit, np.log10(max(p.usual_cost, 1e-3))
        for k in range(out.shape[1]):
            out[e, k] = min(max(out[e, k], -PRIVILEGED_LIMIT), PRIVILEGED_LIMIT)
