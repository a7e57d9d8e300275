"""Batches of a predicted duration, decodes by slack (seconds until the deadline of their next token), prompts by SRPT.

slackfit and its action share these moves. The predicted duration is that of the device's latency profile, all of it,
times how much slower than predicted batches of the same kind, with prompt chunks or without, have been of late. How
long a batch may take is in `aims`.

Where prompts and decodes in one batch take longer than apart, the batch is of one kind: prompts, for as long as the
decodes can wait until they have had a batch of their own, then those decodes.
"""

from typing import Any, NamedTuple

import numpy as np

from baselines.families.aims import EXCLUSIVE, MARGIN, MIXED, Aim, Decoding, aim_of, decoding
from baselines.families.durations import CLOCK, expected, learn_scale, remember_batch, scale_of
from baselines.families.urgent import take_large, take_urgent
from engine.compiled.jit import inner
from engine.device.predicting import gain_apart, largest, predicted
from engine.server.features import EMPTY, Features, add
from engine.server.kv import tokens_left
from engine.server.moves import chunk, decode, enter, fits, fits_decode, is_decode
from engine.server.plan import is_named
from engine.server.queue import QUEUE, WEIGHED, Queue, next_waiting, weighed
from engine.server.state import Plan, View

FILLING = np.dtype([("queue", QUEUE), ("clock", CLOCK)], align=True)
"""What these moves remember of the server; of each request they remember QUEUED."""

LEAST_CHUNK = 64
"""Tokens of a prompt that run even if the batch is full already, so that prompts always go on."""
USUAL_CHUNK = 512.0
"""Tokens of the chunk for which it is asked whether it should share a batch with the decodes."""
LEAST_GAIN = 0.05
"""Share of its seconds that a batch must lose by mixing before prompts wait for batches of decodes."""


class Filling(NamedTuple):
    """What these moves work with beside view and plan."""

    queue: Queue
    clock: Any  # CLOCK, in the memory
    device: Any  # DEVICE, in the parameters


@inner
def shortest_started(view: View, plan: Plan, queue: Queue) -> int:
    """The started prompt with the fewest tokens left, as `weighed`, that this plan has not taken; -1: there is none."""
    row = view.row[0]
    best, least = -1, np.inf
    if row.num_prefilling > 0:
        for j in range(row.num_running):
            i = view.running[j]
            r = view.request[i]
            left = weighed(queue, r, r.prompt - r.prefilled)
            if left < least and not is_decode(r) and not is_named(plan, i):
                best, least = i, left
    return best


@inner
def shortest_remaining(view: View, plan: Plan, queue: Queue, started: int) -> int:
    """The waiting request with fewer tokens (`weighed`) than `started` lacks, else `started`; -1: there is neither."""
    i = next_waiting(view, plan, queue, WEIGHED)
    if i < 0 or is_named(plan, i):
        return started
    if started >= 0:
        r, s = view.request[i], view.request[started]
        if weighed(queue, r, r.prompt) >= weighed(queue, s, s.prompt - s.prefilled):
            return started
    return i


@inner
def _take_prompts(view: View, plan: Plan, filling: Filling, aim: Aim, f: Features) -> tuple[Features, bool]:
    """Chunks by shortest remaining prompt while predicted time is left.

    Once prompts are done, the batch is closed if `close` times the seconds that their users save are more than the
    overhead of another iteration for each prompt behind; with none behind it is closed to decodes that can wait.

    Returns:
        Features of the batch, and whether it is closed.
    """
    row, draft, device = view.row[0], plan.draft[0], filling.device
    blocked, first, scale = False, True, scale_of(filling.clock, 1)
    behind, done_prompts = row.num_waiting + row.num_prefilling + draft.victims, 0
    while row.num_waiting + row.num_prefilling > 0:
        started = shortest_started(view, plan, filling.queue)
        best = started if blocked else shortest_remaining(view, plan, filling.queue, started)
        if best < 0:
            break
        r = view.request[best]
        done, left = (r.prefilled, tokens_left(r)) if best == started else (0, r.prompt)
        most = min(left, row.max_batched_tokens - draft.tokens)
        n = largest(device, f, float(done), most, aim.limit_s / scale)
        n = max(n, min(LEAST_CHUNK, most) if first else 0)
        if n <= 0:
            break
        if best == started:
            chunk(view, plan, best, n)
        elif fits(view, plan, best):
            enter(view, plan, best, n)
        else:
            blocked = True
            continue
        f = add(f, float(done), float(n), False)
        first = False
        if n < left:
            break
        done_prompts += 1
        behind -= 1
        left_s = aim.limit_s - predicted(device, f) * scale
        if behind > 0 and aim.close * done_prompts * left_s > device.overhead * behind:
            return f, True
    return f, done_prompts > 0 and aim.close > 0.0


@inner
def _take_decodes(view: View, plan: Plan, filling: Filling, limit_s: float, slack_s: float, f: Features) -> Features:
    """Decodes with less slack that could wait, oldest first, while time is left; returns the features of the batch."""
    row, draft = view.row[0], plan.draft[0]
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        near = r.last_token + r.tbt - row.now < slack_s
        if near and is_decode(r) and not is_named(plan, i) and fits_decode(view, plan, i):
            more = add(f, r.length - 1.0, 1.0, True)
            if draft.tokens >= row.max_batched_tokens or expected(filling.device, filling.clock, more) > limit_s:
                break
            decode(view, plan, i)
            f = more
    return f


@inner
def _decodes_taken(view: View, plan: Plan) -> Features:
    """Features of the decodes that the plan has."""
    f = EMPTY
    for k in range(plan.size[0]):
        entry = plan.entry[k]
        r = view.request[entry.request]
        if entry.tokens > 0 and is_decode(r):
            f = add(f, r.length - 1.0, 1.0, True)
    return f


@inner
def _time_for_prompts(view: View, decodes_s: float) -> float:
    """Seconds for which every decode can wait and still run in time, in a batch that takes so long."""
    row, least = view.row[0], np.inf
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        if is_decode(r):
            least = min(least, r.last_token + (1.0 - MARGIN) * r.tbt - row.now)
    return least - decodes_s


@inner
def _take_near(view: View, plan: Plan, filling: Filling, aim: Aim, large: bool) -> Features:
    """Decodes that come before prompts: those that must run, those with much KV, those whose deadline is near."""
    draft = plan.draft[0]
    take_urgent(view, plan, aim.must_s)
    if large and draft.victims == 0 and aim.times_mean < np.inf:
        take_large(view, plan, aim.times_mean)
    f = _decodes_taken(view, plan)
    if aim.must_s < aim.near_s and draft.victims == 0:
        f = _take_decodes(view, plan, filling, aim.near_limit_s, aim.near_s, f)
    return f


@inner
def _fill_apart(view: View, plan: Plan, filling: Filling, aim: Aim, decodes_s: float) -> Features:
    """A batch of prompts alone while decodes can wait, else one of decodes; returns its features."""
    room = min(aim.limit_s, _time_for_prompts(view, decodes_s))
    if expected(filling.device, filling.clock, add(EMPTY, 0.0, float(LEAST_CHUNK), False)) <= room:
        alone = Aim(room, aim.must_s, aim.near_s, aim.near_limit_s, aim.times_mean, aim.close)
        f, _ = _take_prompts(view, plan, filling, alone, EMPTY)
        if plan.size[0] > 0:
            return f
    f = _take_near(view, plan, filling, aim, False)
    return _take_decodes(view, plan, filling, aim.limit_s, np.inf, f) if plan.draft[0].victims == 0 else f


@inner
def _fill_together(view: View, plan: Plan, filling: Filling, aim: Aim, prompts: bool) -> Features:
    """Urgent decodes, large decodes, prompts, then the other decodes; returns the features of the batch."""
    f = _take_near(view, plan, filling, aim, prompts)
    if prompts:
        f, closed = _take_prompts(view, plan, filling, aim, f)
        if plan.draft[0].victims == 0 and not closed:
            f = _take_decodes(view, plan, filling, aim.limit_s, np.inf, f)
    return f


@inner
def _apart(filling: Filling, decodes: Features, phases: float) -> bool:
    """Whether prompts and these decodes go into batches of their own: asked for, or together they take longer."""
    if phases == MIXED or decodes.decodes == 0.0:
        return False
    if phases == EXCLUSIVE:
        return True
    return filling.device.per_mixed > 0.0 and gain_apart(filling.device, decodes, USUAL_CHUNK) > LEAST_GAIN


@inner
def fill(view: View, plan: Plan, filling: Filling, aim: Aim, found: Decoding, phases: float) -> None:
    """A batch as aimed at, by decodes and prompts together or apart."""
    row = view.row[0]
    prompts = row.num_waiting + row.num_prefilling > 0
    if prompts and _apart(filling, found.features, phases):
        f = _fill_apart(view, plan, filling, aim, found.seconds)
    else:
        f = _fill_together(view, plan, filling, aim, prompts)
    if plan.size[0] == plan.draft[0].victims:
        take_urgent(view, plan, np.inf)
        f = _decodes_taken(view, plan)
    remember_batch(filling.device, filling.clock, f)


@inner
def fill_by_rule(view: View, plan: Plan, filling: Filling, rule: np.record) -> None:
    """A batch by the rule of slackfit.

    Args:
        view: the server.
        plan: receives the batch.
        filling: queue, clock and device.
        rule: a `Rule`, or a record of RULE.
    """
    q = filling.queue.row
    q.ageing, q.foresight = rule.ageing, rule.foresight
    learn_scale(view, filling.clock)
    found = decoding(view, filling.device, filling.clock)
    fill(view, plan, filling, aim_of(view, found, rule), found, rule.phases)
