"""The past-future scheduler: peak memory under outputs drawn from those of requests that finished lately."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from baselines.families.finished import RING, VALUE, Recent, remember_value
from baselines.families.peak import (
    PEAK,
    add_to_future,
    capacity_tokens,
    decode_without_prompts,
    has_room,
    is_due,
    next_candidate,
    own_maximum,
    peak_tokens,
    prompt_limit,
    running_limit,
)
from baselines.grids import BATCH_CAPS
from baselines.parameters import IterationsFrom0, Requests, Seed, Share, Tokens, TokensFrom0
from engine.compiled.jit import inner
from engine.compiled.random import uniform
from engine.compiled.records import cells_of, params_of, record, records, series
from engine.server.members import MEMBER, join, keep_present
from engine.server.moves import enter
from engine.server.policy import Policy, Space, kernel_of
from engine.server.sorting import SORTED
from engine.server.state import FINISHED, Memory, Plan, View

WINDOW, MAX_FUTURES = 200, 5
"""Output lengths remembered, futures drawn at most."""

SERVER = np.dtype(
    [
        ("peak", PEAK),
        ("watched", "i8"),  # requests that were admitted and have not left
        ("gone", "i8"),  # requests that had left when the watched ones were last looked at
        ("draws", "i8"),  # random numbers drawn
        ("history", RING),  # of outputs
    ],
    align=True,
)
"""What is remembered of the server, before a series of VALUE, the outputs."""


class Past(NamedTuple):
    """What is remembered of requests that have left, and who is watched until it does."""

    row: Any  # SERVER
    history: Recent  # outputs
    watched: Any  # MEMBER[requests]


@dataclass(frozen=True)
class PastFuture(Policy):
    """LightLLM's admission, with outputs drawn from the last 200 finished ones instead of the users' limits.

    A running request draws among the outputs longer than its own so far, a candidate among all; a prompt is admitted
    only if the highest peak of up to five such futures stays below a share of the capacity. Code: ModelTC/lightllm
    branch future_past_router f50e8413, req_queue.py and manager.py in lightllm/server/router. Batches, idle server and
    long prompts as in LightLLM here.
    """

    max_new_tokens: Tokens = 1024
    """Output tokens that users ask for at most: also what the history holds before requests finish (100 times)."""
    limit: Share = 0.95
    """Share of the capacity below which the highest peak must stay; above 1 overcommits the memory."""
    seed: Seed = 0
    """Seed of the draws."""
    batch_max_tokens: TokensFrom0 = 0
    """Prompt tokens per iteration; 0: the model length."""
    batch_cap: Requests = 128
    """Requests that run at the same time (the server's max_num_seqs also applies)."""
    max_wait_tokens: IterationsFrom0 = 10
    """Decode iterations from a refusal until new prompts are considered again."""
    waits_after_prompts: bool = True
    """As many of them after prompts, too (otherwise, as LightLLM from 2024-12 on, new ones are considered at once)."""

    name: ClassVar[str] = "past_future"
    paper: ClassVar[str] = "Past-Future Scheduler, ASPLOS 2025, doi 10.1145/3676641.3716011"
    knows: ClassVar[str] = "prompt length, limit of the output, outputs of finished requests"
    eviction: ClassVar[str] = "youngest running request, recompute"
    evidence: ClassVar[str] = "public code"
    request_memory: ClassVar[int] = cells_of(MEMBER) + MAX_FUTURES * cells_of(SORTED)
    row_memory: ClassVar[int] = cells_of(SERVER) + WINDOW * cells_of(VALUE)
    space: ClassVar[Space] = {
        "max_new_tokens": (512, 1024, 2048),
        "limit": (0.8, 0.9, 0.95, 1.0),
        "batch_cap": BATCH_CAPS,
        "max_wait_tokens": (2, 4, 6, 10),
        "waits_after_prompts": (False, True),
    }


_params, _server, _outputs = record(params_of(PastFuture)), record(SERVER), series(VALUE, behind=SERVER)
_watched, _future = records(MEMBER), records(SORTED)
_MEMBER_CELLS, _FUTURE_CELLS = cells_of(MEMBER), cells_of(SORTED)


@inner
def _cell_of(future: int) -> int:
    """The first cell of an assumed future in a request's line: they are behind MEMBER."""
    return _MEMBER_CELLS + future * _FUTURE_CELLS


@inner
def _draw(p: np.record, past: Past) -> float:
    """The next random number of this run."""
    past.row.draws += 1
    return float(uniform(int(p.seed), past.row.draws))


@inner
def _watch(past: Past, i: int) -> None:
    """From now on look whether request `i` has finished."""
    if not past.watched[i].is_listed:
        past.row.watched = join(past.watched, past.row.watched, i)


@inner
def _learn(view: View, p: np.record, past: Past) -> None:
    """Fill the history at the start; then append the outputs of requests that finished since the last look."""
    row, m = view.row[0], past.row
    if past.history.row.held == 0:
        for _ in range(WINDOW // 2):
            remember_value(past.history, float(p.max_new_tokens))
    if row.finished + row.dropped == m.gone:
        return
    m.gone = row.finished + row.dropped
    for k in range(m.watched):
        r = view.request[past.watched[k].listed]
        if r.status == FINISHED:
            remember_value(past.history, float(r.generated))
    m.watched = keep_present(view, past.watched, m.watched)


@inner
def conditioned_output(past: Past, generated: int, most: int, u: float) -> int:
    """Quantile `u` of the outputs above `generated`: of history, and the request's own maximum after them.

    Linear between neighbours, the first of which is `generated` itself. The maximum is one where history ends below it.
    """
    outputs, held = past.history.value, past.history.row.held
    low, high = 0, held
    while low < high:  # the first entry of the history above `generated`
        middle = (low + high) // 2
        if outputs[middle].ranked > generated:
            high = middle
        else:
            low = middle + 1
    larger = held - low
    if larger > 0 and outputs[held - 1].ranked >= most:
        larger -= 1
        most = int(outputs[held - 1].ranked)
    at = u * (larger + 1)
    k = int(at)
    left = float(generated) if k == 0 else outputs[low + k - 1].ranked
    right = float(most) if k == larger else outputs[low + k].ranked
    return max(int(left + (right - left) * (at - k) + 0.5), generated + 1)


@inner
def _assume_running(view: View, memory: Memory, past: Past, futures: int) -> None:
    """Draw the futures of the running requests."""
    row, p = view.row[0], _params(memory.params)
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        _watch(past, i)
        most = own_maximum(row, r, int(p.max_new_tokens))
        for s in range(futures):
            output = conditioned_output(past, r.generated, most, _draw(p, past))
            add_to_future(view, _future(memory.request[:, _cell_of(s) :]), j, i, output)


@inner
def _peak_with(view: View, memory: Memory, past: Past, futures: int, n: int, i: int) -> float:
    """Add candidate `i` to the `n` requests of each future, with any output of the history; the highest peak."""
    peak, p = 0.0, _params(memory.params)
    for s in range(futures):
        k = int(_draw(p, past) * past.history.row.held)
        future = _future(memory.request[:, _cell_of(s) :])
        add_to_future(view, future, n, i, int(past.history.value[k].ranked))
        peak = max(peak, peak_tokens(view, future, n + 1))
    return peak


@inner
def _admit(view: View, memory: Memory, plan: Plan, past: Past, limit: int) -> None:
    """New prompts in arrival order while the peak of every future stays low."""
    row, p, draft = view.row[0], _params(memory.params), plan.draft[0]
    cap = running_limit(row, int(p.batch_cap))
    if row.num_waiting == 0 or draft.seats >= cap:
        return
    futures = min(MAX_FUTURES, WINDOW // draft.seats + 1) if draft.seats > 0 else 1
    _assume_running(view, memory, past, futures)
    while True:
        i = next_candidate(view, plan)
        if i < 0:
            return
        peak = _peak_with(view, memory, past, futures, draft.seats, i)  # drawn also for one that finds no room
        too_high = draft.seats > 0 and peak >= p.limit * capacity_tokens(row)
        if too_high or not has_room(view, plan, i, limit, cap):
            return
        enter(view, plan, i, min(view.request[i].prompt, limit))
        _watch(past, i)


@kernel_of(PastFuture)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, server = _params(memory.params), _server(memory.row)
    past = Past(server, Recent(server.history, _outputs(memory.row), WINDOW), _watched(memory.request))
    limit, max_wait = prompt_limit(view.row[0], int(p.batch_max_tokens)), int(p.max_wait_tokens)
    _learn(view, p, past)
    due = is_due(view, plan, server.peak, limit, max_wait)
    if due:
        _admit(view, memory, plan, past, limit)
    decode_without_prompts(view, plan, server.peak, due, 0 if p.waits_after_prompts else max_wait)
