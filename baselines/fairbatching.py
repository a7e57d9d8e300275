"""FairBatching: batches as long as the most urgent decode allows, urgent decodes first, then prompts, then the rest."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from baselines.families.keyed import KEYED, KEYS, Keyed, count_newcomers, first_by_key, newcomer, queue_by
from baselines.families.profiled import Profiled, params_on_device
from baselines.parameters import SecondsFrom0
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, record, records
from engine.device.predicting import largest, predicted
from engine.server.features import EMPTY, Features, add
from engine.server.kv import tokens_left
from engine.server.moves import chunk, decode, enter, fits, fits_decode, is_decode, left_to_compute, take_kv
from engine.server.plan import drop, is_named, name
from engine.server.policy import Space, kernel_of
from engine.server.sorting import SORTED, insert_sorted
from engine.server.state import RUNNING, Memory, Plan, View

SERVER = np.dtype([("keys", KEYS), ("tightest", "f8")], align=True)
"""What is remembered of the server: its queue, and the least TPOT objective that has come (s; 0: none has)."""
REQUEST = np.dtype([("queued", KEYED), ("decodes", SORTED)], align=True)
"""What is remembered of a request: its place in the queue, and among the decodes of a plan, by slack (s)."""


@dataclass(frozen=True)
class FairBatching(Profiled):
    """Every token has a deadline, arrival + TTFT objective + its number x TPOT objective; early ones give credit.

    A batch may take as long as the decode with the least slack has, at least the tightest TPOT objective. It takes
    decodes with less slack than that and one TPOT objective more, then prompts, in chunks, then the other decodes, each
    by slack, while the predicted duration allows. From a public note on the paper; what is ours: the device's whole
    latency profile predicts (there a + b tokens + c context), the first item of a batch always runs (64 tokens of a
    prompt), and an urgent decode without a KV block takes those of the youngest request that is not in the batch. The
    prefill admission budget, which the paper exports to a router, and its load estimate are left out.
    """

    ttft_slo: SecondsFrom0 = 0.0
    """TTFT objective of all users (s); 0: the deadline of each one's tier."""
    tpot_slo: SecondsFrom0 = 0.0
    """TPOT objective of all users (s); 0: the deadline between tokens of each one's tier."""

    name: ClassVar[str] = "fairbatching"
    paper: ClassVar[str] = "FairBatching, arXiv 2510.14392"
    knows: ClassVar[str] = "prompt length, tier, a latency profile"
    eviction: ClassVar[str] = "youngest outside the batch, when an urgent decode finds no block; recompute"
    evidence: ClassVar[str] = "reconstructed from a public note with its formulas, no public code"
    request_memory: ClassVar[int] = cells_of(REQUEST)
    row_memory: ClassVar[int] = cells_of(SERVER)
    space: ClassVar[Space] = {"ttft_slo": (0.0, 0.5, 1.0, 4.0), "tpot_slo": (0.0, 0.05, 0.1, 0.2)}


PARAMS = params_on_device(FairBatching)
_params, _server, _requests = record(PARAMS), record(SERVER), records(REQUEST)
LEAST_CHUNK = 64
"""Tokens of a prompt that run even if no duration is left, where the batch has nothing else."""


class Fair(NamedTuple):
    """What one plan is made with."""

    rule: Any  # PARAMS
    queue: Keyed
    decodes: Any  # SORTED[requests]
    tightest: float  # s


@inner
def deadline(p: np.record, r: np.record) -> float:
    """When the next token of a request is due, s."""
    first = p.ttft_slo if p.ttft_slo > 0.0 else r.ttft
    each = p.tpot_slo if p.tpot_slo > 0.0 else r.tbt
    return float(r.arrival + first + r.generated * each)


@inner
def _see_newcomers(view: View, plan: Plan, p: np.record, server: np.record, queue: Keyed) -> None:
    """Queue who has come by deadline; learn the tightest objective."""
    for k in range(count_newcomers(view, queue)):
        i = newcomer(view, queue, k)
        r = view.request[i]
        each = p.tpot_slo if p.tpot_slo > 0.0 else r.tbt
        server.tightest = min(server.tightest, each) if server.tightest > 0.0 else each
        queue_by(view, queue, i, deadline(p, r))


@inner
def _least_slack(view: View, p: np.record) -> float:
    """Seconds until the first deadline among the decodes; 0 if there are none."""
    row, least, found = view.row[0], np.inf, False
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        if is_decode(r):
            least, found = min(least, deadline(p, r)), True
    return least - row.now if found else 0.0


@inner
def _sort_decodes(view: View, plan: Plan, fair: Fair, below: float) -> int:
    """List the decodes with less slack than this that the plan has not touched, by deadline; returns how many."""
    row, n = view.row[0], 0
    for j in range(row.num_running):
        i = view.running[j]
        due = deadline(fair.rule, view.request[i])
        if is_decode(view.request[i]) and due - row.now < below and not is_named(plan, i):
            fair.decodes[i].key = due
            insert_sorted(fair.decodes, n, i)
            n += 1
    return n


@inner
def _make_room(view: View, plan: Plan, i: int) -> bool:
    """Take KV from the youngest outside the batch until decode `i` finds a block; False if it is its own."""
    j = view.row[0].num_running - 1
    while not fits_decode(view, plan, i) and j >= 0:
        v = view.running[j]
        j -= 1
        if v == i or not is_named(plan, v):
            name(plan, v)  # it is not served again
            take_kv(view, plan, v)
            if v == i:
                return False
    return True


@inner
def _take_decodes(view: View, plan: Plan, fair: Fair, f: Features, budget_s: float, below: float) -> Features:
    """Decodes with less slack than this, by slack, while the duration allows; the urgent ones find KV."""
    row, draft, device = view.row[0], plan.draft[0], fair.rule.profile
    for k in range(_sort_decodes(view, plan, fair, below)):
        i = fair.decodes[k].listed
        more = add(f, view.request[i].length - 1.0, 1.0, True)
        over = draft.tokens > 0 and predicted(device, more) > budget_s
        if over or draft.tokens >= row.max_batched_tokens:
            break
        if is_named(plan, i) or (below == np.inf and draft.tokens > 0 and not fits_decode(view, plan, i)):
            continue
        if _make_room(view, plan, i):
            decode(view, plan, i)
            f = more
    return f


@inner
def _first_started(view: View, plan: Plan, p: np.record) -> int:
    """The started prompt whose token is due first, of those that the plan has not taken; -1: there is none."""
    row, best, due = view.row[0], -1, np.inf
    for j in range(row.num_running if row.num_prefilling > 0 else 0):
        i = view.running[j]
        r = view.request[i]
        if not is_decode(r) and not is_named(plan, i) and deadline(p, r) < due:
            best, due = i, deadline(p, r)
    return best


@inner
def _first_prompt(view: View, plan: Plan, fair: Fair, closed: bool) -> int:
    """The prompt whose token is due first, started or, unless the queue is closed, waiting; -1: there is none."""
    started = _first_started(view, plan, fair.rule)
    if closed:
        return started
    waiting = first_by_key(view, plan, fair.queue)
    if started < 0 or waiting < 0:
        return max(started, waiting)
    first = deadline(fair.rule, view.request[started]) <= deadline(fair.rule, view.request[waiting])
    return started if first else waiting


@inner
def _take_prompt(view: View, plan: Plan, fair: Fair, i: int, f: Features, budget_s: float) -> int:
    """As many tokens of a prompt as the duration allows; returns how many, -1: it finds no KV or seat."""
    row, draft, r = view.row[0], plan.draft[0], view.request[i]
    left = tokens_left(r) if r.status == RUNNING else left_to_compute(view, plan, i)
    most = min(left, row.max_batched_tokens - draft.tokens)
    n = largest(fair.rule.profile, f, float(r.prefilled), most, budget_s)
    n = max(n, min(LEAST_CHUNK, most) if draft.tokens == 0 else 0)
    if n <= 0:
        return 0
    if r.status == RUNNING:
        chunk(view, plan, i, n)
    elif fits(view, plan, i):
        enter(view, plan, i, n)
    else:
        return -1
    return int(n)


@inner
def _take_prompts(view: View, plan: Plan, fair: Fair, f: Features, budget_s: float) -> Features:
    """Prompts by slack while the duration allows; one that finds no KV keeps out those behind it in the queue."""
    closed = False
    while True:
        i = _first_prompt(view, plan, fair, closed)
        if i < 0:
            return f
        r = view.request[i]
        if r.status != RUNNING and r.prompt > view.row[0].max_model_len:
            drop(plan, i)
            continue
        n = _take_prompt(view, plan, fair, i, f, budget_s)
        if n == 0:
            return f
        closed = closed or n < 0
        f = add(f, float(r.prefilled), float(n), False) if n > 0 else f


@kernel_of(FairBatching)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, server, requests = _params(memory.params), _server(memory.row), _requests(memory.request)
    queue = Keyed(server.keys, requests.queued)
    _see_newcomers(view, plan, p, server, queue)
    fair = Fair(p, queue, requests.decodes, server.tightest)
    budget_s = max(_least_slack(view, p), fair.tightest)
    f = _take_decodes(view, plan, fair, EMPTY, budget_s, budget_s + fair.tightest)
    f = _take_prompts(view, plan, fair, f, budget_s)
    _take_decodes(view, plan, fair, f, budget_s, np.inf)
