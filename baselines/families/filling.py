"""Batches of a predicted duration, decodes by slack (seconds until the deadline of their next token), prompts by SRPT.

slackfit and its action share these moves. The predicted duration is that of a latency profile, times how much slower
than predicted the device has been of late.
"""

from typing import Any, NamedTuple

import numpy as np

from engine.compiled.jit import inner
from engine.device.latency import LatencyModel
from engine.server.kv import tokens_left
from engine.server.moves import chunk, decode, enter, fits, fits_decode, is_decode, take_kv
from engine.server.plan import is_named, name
from engine.server.queue import QUEUE, QUEUED, WEIGHED, Queue, next_waiting, weighed
from engine.server.state import Plan, View

PROFILE = np.dtype(
    [(name, "f8") for name in ("overhead", "floor", "per_token", "per_pair", "per_context")],  # s
    align=True,
)
"""A latency profile, as far as it predicts a batch."""

CLOCK = np.dtype(
    [
        ("scale", "f8"),  # running mean of measured / predicted seconds
        ("predicted", "f8"),  # s, of the batch of the last plan, 0: none
        ("iteration", "f8"),  # its index
        ("attention", "f8"),  # s, predicted of the batch in the making: all that is not per token
    ],
    align=True,
)
"""What is known of batch durations."""

FILLING = np.dtype([("queue", QUEUE), ("clock", CLOCK)], align=True)
"""What these moves remember of the server; of each request they remember QUEUED."""

FORGET = 0.05
"""Weight of the last batch in the running mean."""
LEAST_CHUNK = 64
"""Tokens of a prompt that run even if the batch is full already, so that prompts always go on."""


class Filling(NamedTuple):
    """What these moves work with beside view and plan."""

    queue: Queue
    clock: Any  # CLOCK, in the memory
    profile: Any  # PROFILE, in the parameters


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


RULE = np.dtype([(name, "f8") for name in Rule._fields], align=True)
"""The same in the parameters of a policy."""


class Aim(NamedTuple):
    """What one batch is to be."""

    limit_s: float  # s, > 0: predicted, of the batch
    slack_s: float  # s: a decode with less slack must run (inf: all of them)
    times_mean: float  # one with more KV than this many times the mean runs, too (inf: none)
    close: float  # weight of the seconds that an early end saves users of finished prompts (0: no early end)


def profile_params(model: LatencyModel) -> tuple[float, ...]:
    """A profile as the numbers of PROFILE (s); of a table the ends are kept."""
    floor, per_token = model.floor, model.per_token
    if model.table:
        (_, floor), (most, seconds) = model.table[0], model.table[-1]
        per_token = seconds / most
    return model.overhead, floor, per_token, model.per_pair, model.per_context


@inner
def learn_scale(view: View, clock: np.record) -> None:
    """Compare the last batch with its prediction, and begin another one."""
    row = view.row[0]
    if clock.scale == 0.0:
        clock.scale = 1.0
    if clock.predicted > 0.0 and row.iterations == clock.iteration + 1.0:
        clock.scale += FORGET * (row.last_duration / clock.predicted - clock.scale)
    clock.iteration, clock.predicted = row.iterations, 0.0


@inner
def _seconds(profile: np.record, tokens: int, attention: float) -> float:
    return profile.overhead + max(profile.floor, profile.per_token * tokens) + attention


@inner
def _largest_chunk(filling: Filling, tokens: int, done: int, limit_s: float) -> int:
    """Prompt tokens that fit a batch of so many tokens, behind `done` tokens of their request."""
    profile, attention = filling.profile, filling.clock.attention
    over = profile.overhead + attention + profile.per_token * tokens - limit_s
    if over >= 0.0 or profile.overhead + attention + profile.floor > limit_s:
        return 0
    a, b = 0.5 * profile.per_pair, profile.per_token + profile.per_pair * (done + 0.5)
    return int(-2.0 * over / (b + np.sqrt(b * b - 4.0 * a * over)))


@inner
def _youngest_unplanned(view: View, plan: Plan, i: int) -> int:
    """The youngest request with KV that this plan has not touched yet; `i` itself if there is none."""
    for j in range(view.row[0].num_running - 1, -1, -1):
        if not is_named(plan, view.running[j]):
            return view.running[j]
    return i


@inner
def take_urgent(view: View, plan: Plan, slack_s: float) -> None:
    """Decodes with less slack than this, oldest first; one without a block evicts the youngest unplanned request."""
    row, draft = view.row[0], plan.draft[0]
    for j in range(row.num_running):
        if draft.tokens >= row.max_batched_tokens:
            break
        i = view.running[j]
        r = view.request[i]
        if not is_decode(r) or r.last_token + r.tbt - row.now >= slack_s or is_named(plan, i):
            continue
        name(plan, i)
        fits = fits_decode(view, plan, i)
        while not fits:
            v = _youngest_unplanned(view, plan, i)
            name(plan, v)  # it is not served again
            take_kv(view, plan, v)
            if v == i:
                break
            fits = fits_decode(view, plan, i)
        if fits:
            decode(view, plan, i)


@inner
def take_large(view: View, plan: Plan, times_mean: float) -> None:
    """Decodes with more KV than so many times the mean: they free the most memory."""
    row, draft, total = view.row[0], plan.draft[0], 0
    for j in range(row.num_running):
        total += view.request[view.running[j]].length
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        large = is_decode(r) and r.length * row.num_running > times_mean * total
        large = large and draft.tokens < row.max_batched_tokens
        if large and not is_named(plan, i) and fits_decode(view, plan, i):
            decode(view, plan, i)


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
def _take_prompts(view: View, plan: Plan, filling: Filling, aim: Aim) -> bool:
    """Chunks by shortest remaining prompt while predicted time is left.

    Once prompts are done, the batch is closed if `close` times the seconds that their users save are more than the
    overhead of another iteration for each prompt behind; with none behind it is closed to decodes that can wait.

    Returns:
        Whether the batch is closed.
    """
    row, draft, clock, profile = view.row[0], plan.draft[0], filling.clock, filling.profile
    blocked, first = False, True
    behind, done_prompts = row.num_waiting + row.num_prefilling + draft.victims, 0
    while row.num_waiting + row.num_prefilling > 0:
        started = shortest_started(view, plan, filling.queue)
        best = started if blocked else shortest_remaining(view, plan, filling.queue, started)
        if best < 0:
            break
        r = view.request[best]
        done, left = (r.prefilled, tokens_left(r)) if best == started else (0, r.prompt)
        n = max(_largest_chunk(filling, draft.tokens, done, aim.limit_s), LEAST_CHUNK if first else 0)
        n = min(left, row.max_batched_tokens - draft.tokens, n)
        if n <= 0:
            break
        if best == started:
            chunk(view, plan, best, n)
        elif fits(view, plan, best):
            enter(view, plan, best, n)
        else:
            blocked = True
            continue
        clock.attention += profile.per_pair * n * (done + 0.5 * (n + 1))
        first = False
        if n < left:
            break
        done_prompts += 1
        behind -= 1
        left_s = aim.limit_s - _seconds(profile, draft.tokens, clock.attention)
        if behind > 0 and aim.close * done_prompts * left_s > profile.overhead * behind:
            return True
    return done_prompts > 0 and aim.close > 0.0


@inner
def _take_others(view: View, plan: Plan, filling: Filling, limit_s: float) -> None:
    """Decodes that could wait, oldest first, while predicted time is left."""
    row, draft, clock, profile = view.row[0], plan.draft[0], filling.clock, filling.profile
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if is_decode(r) and not is_named(plan, i) and fits_decode(view, plan, i):
            more = profile.per_context * r.length
            seconds = _seconds(profile, draft.tokens + 1, clock.attention + more)
            if draft.tokens >= row.max_batched_tokens or seconds > limit_s:
                break
            decode(view, plan, i)
            clock.attention += more


@inner
def _context_seconds(view: View, plan: Plan, profile: np.record) -> float:
    """Predicted attention seconds of the decodes taken so far."""
    row, total = view.row[0], 0
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if is_decode(r) and is_named(plan, i):
            total += r.length
    return profile.per_context * total


@inner
def fill(view: View, plan: Plan, filling: Filling, aim: Aim) -> None:
    """A batch as aimed at: urgent decodes, large decodes, prompts by SRPT, then the other decodes."""
    row, draft, clock, profile = view.row[0], plan.draft[0], filling.clock, filling.profile
    prompts = row.num_waiting + row.num_prefilling > 0
    take_urgent(view, plan, aim.slack_s if prompts else np.inf)
    if prompts and draft.victims == 0 and aim.times_mean < np.inf:
        take_large(view, plan, aim.times_mean)
    clock.attention = _context_seconds(view, plan, profile)
    if prompts:
        closed = _take_prompts(view, plan, filling, aim)
        if draft.victims == 0 and not closed:
            _take_others(view, plan, filling, aim.limit_s)
    if plan.size[0] == draft.victims:
        take_urgent(view, plan, np.inf)
        clock.attention = _context_seconds(view, plan, profile)
    clock.predicted = _seconds(profile, draft.tokens, clock.attention)


@inner
def fill_by_rule(view: View, plan: Plan, filling: Filling, rule: np.record) -> None:
    """A batch by the rule of slackfit.

    Args:
        view: the server.
        plan: receives the batch.
        filling: queue, clock and profile.
        rule: a `Rule`, or a record of RULE.
    """
    row, q, strict = view.row[0], filling.queue.row, False
    q.ageing, q.foresight = rule.ageing, rule.foresight
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        strict = strict or (r.strict > 0 and is_decode(r))
    limit = rule.strict_limit if strict else rule.relaxed_limit
    use = 1.0 - row.free_blocks / row.num_blocks
    slack_s, times_mean, close = limit + (rule.slack - 1.0) * rule.longest_limit, np.inf, rule.close
    if use >= rule.memory_limit:
        slack_s, close = np.inf, 0.0
    elif use > rule.eager_from:
        times_mean, close = 2.0 * (rule.memory_limit - use) / (rule.memory_limit - rule.eager_from), 0.0
    learn_scale(view, filling.clock)
    fill(view, plan, filling, Aim(limit / filling.clock.scale, slack_s, times_mean, close))


__all__ = [
    "CLOCK",
    "FILLING",
    "PROFILE",
    "QUEUED",
    "RULE",
    "Aim",
    "Filling",
    "Rule",
    "fill",
    "fill_by_rule",
    "learn_scale",
    "profile_params",
    "shortest_remaining",
    "shortest_started",
    "take_large",
    "take_urgent",
]
