"""What the next batch is to be by the rule of slackfit: how long, and which decodes run before prompts.

Every limit is free of scale, so that it means the same with other deadlines, any number of tiers and on another device:
shares of the tightest deadline among those who decode, multiples of the shortest batch of the device, shares of the KV
blocks and of the seats.
"""

from typing import NamedTuple

import numpy as np

from baselines.families.durations import ask_device, decodes_of, scale_of
from engine.compiled.jit import inner
from engine.device.predicting import predicted
from engine.server.features import Features
from engine.server.moves import is_decode
from engine.server.state import View

MARGIN = 0.1
"""Share of their deadlines that decodes keep when they wait, and that no batch takes because it would be too short."""
LEAST_USEFUL = 2.0
"""Batches take more than their share of a deadline rather than be shorter than so many of the shortest ones."""
FEW_SEATS = 0.75
"""Share of the seats (max_num_seqs) in use from which they are short: all decodes run, and batches get shorter."""
SHORTEST = 2.0
"""Seconds of a batch where all seats are taken, in those of its decodes alone: what frees seats is decodes."""
BEFORE_PROMPTS = 0.65
"""Share of the tightest deadline that decodes which could wait take before prompts do."""
AUTO, MIXED, EXCLUSIVE = 0.0, 1.0, 2.0
PHASES = {"auto": AUTO, "mixed": MIXED, "exclusive": EXCLUSIVE}
"""Phases: as the profile says, always in one batch, always apart."""


class Rule(NamedTuple):
    """The rule of `baselines.slackfit.Slackfit`; its fields are described there."""

    limit: float  # share of the tightest deadline among those who decode
    longest: float  # shortest batches
    longest_s: float  # s, beside that: for policies of earlier versions (inf: none)
    next_s: float  # s, the same of the next batch
    slack: float  # batch limits
    eager_from: float  # share of the KV blocks
    memory_limit: float  # share of the KV blocks
    ageing: float  # tokens/s
    close: float
    close_until: float  # share of the seats
    foresight: float
    phases: float  # AUTO, MIXED or EXCLUSIVE


RULE = np.dtype([(name, "f8") for name in Rule._fields], align=True)
"""The same in the parameters of a policy."""


class Decoding(NamedTuple):
    """Everybody who decodes, as one batch."""

    features: Features
    seconds: float  # expected, of that batch
    shortest_s: float  # the same of a batch of one token
    tightest_s: float  # shortest deadline between tokens among them that a batch can meet (inf: there is none)
    efficient_s: float  # expected of the shortest batch of prompts in which a token costs little more than in any


class Aim(NamedTuple):
    """What one batch is to be."""

    limit_s: float  # s, > 0: expected, of the batch
    must_s: float  # s: a decode with less slack must run (inf: all of them)
    near_s: float  # s: one with less slack comes before prompts, as far as the batch then takes no more than
    near_limit_s: float  # s
    times_mean: float  # one with more KV than this many times the mean runs, too (inf: none)
    close: float  # weight of the seconds that an early end saves users of finished prompts (0: no early end)


@inner
def _tightest(view: View, least_s: float) -> float:
    """The shortest deadline between tokens of a decode, of those that leave so many seconds to a batch."""
    tightest_s = np.inf
    for j in range(view.row[0].num_running):
        r = view.request[view.running[j]]
        if is_decode(r) and r.tbt < tightest_s and (1.0 - MARGIN) * r.tbt >= least_s:
            tightest_s = r.tbt
    return tightest_s


@inner
def decoding(view: View, device: np.record, clock: np.record) -> Decoding:
    """Who decodes.

    Args:
        view: the server.
        device: a record of DEVICE.
        clock: a record of CLOCK.
    """
    number, context, tightest_s = 0, 0, np.inf
    for j in range(view.row[0].num_running):
        r = view.request[view.running[j]]
        if is_decode(r):
            number += 1
            context += r.length
            tightest_s = min(tightest_s, r.tbt)
    f, scale = decodes_of(float(number), float(context)), scale_of(clock, 0)
    if clock.shortest == 0.0:
        ask_device(device, clock)
    shortest_s = clock.shortest * scale
    if (1.0 - MARGIN) * tightest_s < shortest_s:
        tightest_s = _tightest(view, shortest_s)
    return Decoding(f, predicted(device, f) * scale, shortest_s, tightest_s, clock.efficient * scale_of(clock, 1))


@inner
def _limit_for_seats(limit_s: float, decodes_s: float, short: float) -> float:
    """Seconds of a batch while seats are short: the limit at 0, SHORTEST decodes at 1."""
    return (1.0 - short) * limit_s + short * min(limit_s, SHORTEST * decodes_s)


@inner
def aim_of(view: View, found: Decoding, rule: np.record) -> Aim:
    """What the rule makes of the next batch.

    Where all decodes together would take more than BEFORE_PROMPTS of the tightest deadline, they take turns: those that
    cannot wait for another batch must run, others come before prompts up to there.

    Args:
        view: the server.
        found: who decodes on it.
        rule: a `Rule`, or a record of RULE.
    """
    row, times_mean, close = view.row[0], np.inf, rule.close
    useful_s = min((1.0 - MARGIN) * found.tightest_s, LEAST_USEFUL * found.shortest_s)
    in_time_s = max(rule.limit * found.tightest_s, useful_s)
    longest_s = max(rule.longest * found.shortest_s, found.efficient_s)
    limit_s, next_s = min(in_time_s, longest_s, rule.longest_s), min(longest_s, rule.next_s)
    use, seats = 1.0 - row.free_blocks / row.num_blocks, row.num_running / row.max_num_seqs
    if seats > FEW_SEATS:
        limit_s = _limit_for_seats(limit_s, found.seconds, (seats - FEW_SEATS) / (1.0 - FEW_SEATS))
    near_s, near_limit_s = limit_s + (rule.slack - 1.0) * next_s, BEFORE_PROMPTS * found.tightest_s
    if use >= rule.memory_limit or seats > FEW_SEATS:
        near_s, close = np.inf, 0.0
    elif use > rule.eager_from:
        times_mean, close = 2.0 * (rule.memory_limit - use) / (rule.memory_limit - rule.eager_from), 0.0
    if seats > rule.close_until:
        close = 0.0
    if row.num_waiting + row.num_prefilling == 0:
        near_s, near_limit_s = np.inf, max(in_time_s, (1.0 - MARGIN) * found.tightest_s)
    must_s = near_s if found.seconds <= near_limit_s else min(near_s, limit_s + next_s)
    return Aim(limit_s, must_s, near_s, near_limit_s, times_mean, close)
