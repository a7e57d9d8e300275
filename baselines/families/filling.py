"""Batches of a predicted duration, decodes by slack (seconds until the deadline of their next token), prompts by SRPT.

slackfit and its action share these moves. The predicted duration is that of the device's latency profile, all of it,
times how much slower than predicted batches of the same kind, with prompt chunks or without, have been of late.

Where prompts and decodes in one batch take longer than apart, the batch is of one kind: prompts, for as long as the
decodes can wait until they have had a batch of their own, then those decodes.
"""

from typing import Any, NamedTuple

import numpy as np

from baselines.families.durations import CLOCK, all_decodes, expected, learn_scale, remember_batch, scale_of
from baselines.families.urgent import take_large, take_urgent
from engine.compiled.jit import inner
from engine.device.predicting import gain_apart, largest, predicted
from engine.server.features import EMPTY, Features, add
from engine.server.kv import tokens_left
from engine.server.moves import chunk, decode, enter, fits, fits_decode, is_decode
from engine.server.plan import is_named
from engine.server.queue import QUEUE, QUEUED, WEIGHED, Queue, next_waiting, weighed
from engine.server.state import Plan, View

FILLING = np.dtype([("queue", QUEUE), ("clock", CLOCK)], align=True)
"""What these moves remember of the server; of each request they remember QUEUED."""

LEAST_CHUNK = 64
"""Tokens of a prompt that run even if the batch is full already, so that prompts always go on."""
USUAL_CHUNK = 512.0
"""Tokens of the chunk for which it is asked whether it should share a batch with the decodes."""
FEW_SEATS = 0.75
"""Share of the seats (max_num_seqs) in use from which they are short: all decodes run, and batches get shorter."""
SHORTEST = 2.0
"""Seconds of a batch where all seats are taken, in those of its decodes alone: what frees seats is decodes."""
LEAST_GAIN = 0.05
"""Share of its seconds that a batch must lose by mixing before prompts wait for batches of decodes."""
MARGIN = 0.1
"""Share of their deadlines that decodes keep when they wait for a batch of prompts."""
AUTO, MIXED, EXCLUSIVE = 0.0, 1.0, 2.0
"""Phases: as the profile says, always in one batch, always apart."""


class Filling(NamedTuple):
    """What these moves work with beside view and plan."""

    queue: Queue
    clock: Any  # CLOCK, in the memory
    device: Any  # DEVICE, in the parameters


class Rule(NamedTuple):
    """The rule of `baselines.slackfit.Slackfit`; its fields are described there."""

    strict_limit: float  # s
    relaxed_limit: float  # s
    longest_limit: float  # s, that the next batch may have
    slack: float  # batch limits
    eager_from: float  # share of the KV blocks
    memory_limit: float  # share of the KV blocks
    ageing: float  # tokens/s
    close: float
    foresight: float
    phases: float  # AUTO, MIXED or EXCLUSIVE


RULE = np.dtype([(name, "f8") for name in Rule._fields], align=True)
"""The same in the parameters of a policy."""


class Aim(NamedTuple):
    """What one batch is to be."""

    limit_s: float  # s, > 0: expected, of the batch
    slack_s: float  # s: a decode with less slack must run (inf: all of them)
    times_mean: float  # one with more KV than this many times the mean runs, too (inf: none)
    close: float  # weight of the seconds that an early end saves users of finished prompts (0: no early end)


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
def _take_others(view: View, plan: Plan, filling: Filling, limit_s: float, f: Features) -> Features:
    """Decodes that could wait, oldest first, while predicted time is left; returns the features of the batch."""
    row, draft = view.row[0], plan.draft[0]
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if is_decode(r) and not is_named(plan, i) and fits_decode(view, plan, i):
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
def _fill_apart(view: View, plan: Plan, filling: Filling, aim: Aim, decodes: Features) -> Features:
    """A batch of prompts alone while decodes can wait, else one of decodes; returns its features."""
    room = min(aim.limit_s, _time_for_prompts(view, expected(filling.device, filling.clock, decodes)))
    if expected(filling.device, filling.clock, add(EMPTY, 0.0, float(LEAST_CHUNK), False)) <= room:
        f, _ = _take_prompts(view, plan, filling, Aim(room, aim.slack_s, aim.times_mean, aim.close), EMPTY)
        if plan.size[0] > 0:
            return f
    take_urgent(view, plan, aim.slack_s)
    f = _decodes_taken(view, plan)
    return _take_others(view, plan, filling, aim.limit_s, f) if plan.draft[0].victims == 0 else f


@inner
def _fill_together(view: View, plan: Plan, filling: Filling, aim: Aim, prompts: bool) -> Features:
    """Urgent decodes, large decodes, prompts, then the other decodes; returns the features of the batch."""
    draft = plan.draft[0]
    take_urgent(view, plan, aim.slack_s if prompts else np.inf)
    if prompts and draft.victims == 0 and aim.times_mean < np.inf:
        take_large(view, plan, aim.times_mean)
    f = _decodes_taken(view, plan)
    if prompts:
        f, closed = _take_prompts(view, plan, filling, aim, f)
        if draft.victims == 0 and not closed:
            f = _take_others(view, plan, filling, aim.limit_s, f)
    return f


@inner
def _may_go_apart(filling: Filling, phases: float) -> bool:
    """Whether prompts and decodes may be served apart: where that is asked for, or mixing costs something."""
    return phases == EXCLUSIVE or (phases == AUTO and filling.device.per_mixed > 0.0)


@inner
def _apart(filling: Filling, decodes: Features, phases: float) -> bool:
    """Whether prompts and these decodes, which may, go into batches of their own."""
    if decodes.decodes == 0.0:
        return False
    return phases == EXCLUSIVE or gain_apart(filling.device, decodes, USUAL_CHUNK) > LEAST_GAIN


@inner
def fill(view: View, plan: Plan, filling: Filling, aim: Aim, phases: float) -> None:
    """A batch as aimed at, by decodes and prompts together or apart."""
    row, draft = view.row[0], plan.draft[0]
    prompts, decodes = row.num_waiting + row.num_prefilling > 0, EMPTY
    if prompts and _may_go_apart(filling, phases):
        decodes = all_decodes(view)
    if _apart(filling, decodes, phases):
        f = _fill_apart(view, plan, filling, aim, decodes)
    else:
        f = _fill_together(view, plan, filling, aim, prompts)
    if plan.size[0] == draft.victims:
        take_urgent(view, plan, np.inf)
        f = _decodes_taken(view, plan)
    remember_batch(filling.device, filling.clock, f)


@inner
def _limit_for_seats(view: View, filling: Filling, limit: float, short: float) -> float:
    """Seconds of a batch while seats are short: the limit at 0, SHORTEST decodes at 1."""
    least = SHORTEST * expected(filling.device, filling.clock, all_decodes(view))
    return (1.0 - short) * limit + short * min(limit, least)


@inner
def fill_by_rule(view: View, plan: Plan, filling: Filling, rule: np.record) -> None:
    """A batch by the rule of slackfit.

    Args:
        view: the server.
        plan: receives the batch.
        filling: queue, clock and device.
        rule: a `Rule`, or a record of RULE.
    """
    row, q, strict = view.row[0], filling.queue.row, False
    q.ageing, q.foresight = rule.ageing, rule.foresight
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        strict = strict or (r.strict > 0 and is_decode(r))
    limit = rule.strict_limit if strict else rule.relaxed_limit
    use, seats = 1.0 - row.free_blocks / row.num_blocks, row.num_running / row.max_num_seqs
    if seats > FEW_SEATS:
        limit = _limit_for_seats(view, filling, limit, (seats - FEW_SEATS) / (1.0 - FEW_SEATS))
    slack_s, times_mean, close = limit + (rule.slack - 1.0) * rule.longest_limit, np.inf, rule.close
    if use >= rule.memory_limit or seats > FEW_SEATS:
        slack_s, close = np.inf, 0.0
    elif use > rule.eager_from:
        times_mean, close = 2.0 * (rule.memory_limit - use) / (rule.memory_limit - rule.eager_from), 0.0
    learn_scale(view, filling.clock)
    fill(view, plan, filling, Aim(limit, slack_s, times_mean, close), rule.phases)


__all__ = [
    "AUTO",
    "EXCLUSIVE",
    "FILLING",
    "MIXED",
    "QUEUED",
    "RULE",
    "Aim",
    "Filling",
    "Rule",
    "fill",
    "fill_by_rule",
    "shortest_remaining",
    "shortest_started",
]
