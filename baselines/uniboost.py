"""UniBoost: short prompts get a head start that long ones can wait out, on SGLang's batches."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.families.finished import (
    RING,
    SERVED,
    SERVING,
    VALUE,
    Recent,
    Served,
    count_finished,
    remember_value,
    watch_served,
)
from baselines.families.sglang import (
    LINE,
    WAITER,
    Line,
    PrefillFirst,
    decode_all,
    line_rule,
    line_up,
    may_prefill,
    prefill,
    sort_line,
)
from baselines.parameters import PerSecond, Seconds
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records, series
from engine.server.policy import Space, kernel_of
from engine.server.state import Memory, Plan, View

WINDOW, FEWEST, EVERY_S = 2000, 200, 5.0
"""Latencies remembered, how many are enough to adapt, and seconds between two adaptations."""
LEAST_GAMMA, MOST_GAMMA, STEEPNESS, WEIGHT = 1.0, 200.0, 4.0, 0.3
"""Range of an adapted gamma (1/s), how fast it falls with a heavy tail, and the weight of a new one."""

SERVER = np.dtype(
    [
        ("line", LINE),
        ("served", SERVING),
        ("latencies", RING),
        ("gamma", "f8"),  # 1/s; 0: not set yet
        ("ordered_by", "f8"),  # that by which those who wait are sorted
        ("adapted_s", "f8"),  # when it was set last
    ],
    align=True,
)
"""What is remembered of the server, before a series of VALUE."""
REQUEST = np.dtype([("waiter", WAITER), ("served", SERVED)], align=True)
"""What is remembered of a request."""


@dataclass(frozen=True)
class UniBoost(PrefillFirst):
    """The queue by arrival less a boost b(w) = ln(1 / (1 - exp(-gamma w))) / gamma, w the seconds that a prompt takes.

    A small gamma is shortest first, a large one first come, first served; no lengths are predicted. With adaptive
    (gamma-Ada), every 5 s gamma goes 30 % of the way to 200 / (1 + 4 (t99 / t95 - 1)), of the last 2000 latencies from
    arrival to end. Code: yl3469/sglang 9979a9a python/sglang/srt/managers/schedule_policy.py for order and adaptation;
    batches are those of `sglang`. The paper's order of decodes and its MemGuard have no public code and are left out.
    """

    gamma: PerSecond = 10.0
    """gamma (1/s), at first if it is adapted."""
    alpha: Seconds = 64e-6
    """Seconds that a prompt token takes."""
    adaptive: bool = False
    """Adapt gamma to the tail of the latencies."""

    name: ClassVar[str] = "uniboost"
    paper: ClassVar[str] = "UniBoost, ICML 2026, arXiv 2606.18431"
    knows: ClassVar[str] = "prompt length, limit of the output"
    evidence: ClassVar[str] = "public code for the order, read by others; MemGuard left out"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(SERVER) + WINDOW * cells_of(VALUE)
    space: ClassVar[Space] = {
        "chunked_prefill_size": (512, 1024, 2048, 4096, 8192),
        "gamma": (0.02, 0.05, 0.2, 1.0, 10.0),
        "alpha": (64e-6, 130e-6),
        "adaptive": (False, True),
    }


_params, _server, _requests = record(params_of(UniBoost)), record(SERVER), records(REQUEST)
_latencies = series(VALUE, behind=SERVER)


@inner
def boost_key(gamma: float, arrival: float, work: float) -> float:
    """What a request is sorted by, s.

    Args:
        gamma: 1/s.
        arrival: s.
        work: seconds that its prompt takes.
    """
    return float(arrival + np.log(-np.expm1(-gamma * work)) / gamma)


@inner
def next_gamma(gamma: float, t95: float, t99: float) -> float:
    """Gamma after latencies with these percentiles (s)."""
    target = MOST_GAMMA / (1.0 + STEEPNESS * max(t99 / t95 - 1.0, 0.0))
    return float(min(max(gamma + WEIGHT * (target - gamma), LEAST_GAMMA), MOST_GAMMA))


@inner
def _adapt(view: View, server: np.record, served: Served, recent: Recent) -> None:
    """Take in who has finished, and set gamma anew where it is time to."""
    for k in range(count_finished(view, served)):
        r = view.request[served.request[k].gone]
        remember_value(recent, r.last_token - r.arrival)
    held, now = recent.row.held, view.row[0].now
    if held >= FEWEST and now - server.adapted_s >= EVERY_S:
        t95, t99 = recent.value[int(0.95 * held)].ranked, recent.value[int(0.99 * held)].ranked
        server.gamma, server.adapted_s = next_gamma(server.gamma, t95, t99), now


@inner
def _order(view: View, plan: Plan, line: Line, server: np.record, alpha: float) -> None:
    """Bring the queue up to date and into its order."""
    first = line_up(view, plan, line)
    for k in range(first if server.gamma == server.ordered_by else 0, line.row.members):
        i = line.request[k].member.listed
        r = view.request[i]
        line.request[i].key = boost_key(server.gamma, r.arrival, alpha * r.prompt)
    server.ordered_by = server.gamma
    sort_line(line)


@kernel_of(UniBoost)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, server, requests = _params(memory.params), _server(memory.row), _requests(memory.request)
    line = Line(server.line, requests.waiter, line_rule(memory.params))
    served, runs = Served(server.served, requests.served), False
    if server.gamma == 0.0:
        server.gamma, server.ordered_by = p.gamma, p.gamma
    if p.adaptive:
        _adapt(view, server, served, Recent(server.latencies, _latencies(memory.row), WINDOW))
    if may_prefill(view, line):
        _order(view, plan, line, server, p.alpha)
        runs = prefill(view, plan, line, False)
    if not runs:
        decode_all(view, plan, line)
    if p.adaptive:
        watch_served(view, plan, served)
