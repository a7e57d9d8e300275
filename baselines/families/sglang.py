"""Prompts before decodes, as SGLang's scheduler makes batches; the policies that share it order its queue.

A batch is chunks of prompts or, where none may run, one token for every decode. The queue is a list that is sorted anew
when prompts are looked for; equals stay as they came. Who is retracted comes to its end.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from baselines.families.peak import own_maximum
from baselines.parameters import NumberFrom0, Tokens
from engine.compiled.jit import inner
from engine.compiled.records import params_of, record
from engine.server.kv import blocks_to_admit, decode_need
from engine.server.members import MEMBER, SEEN, join, look_at_queue
from engine.server.moves import chunk, decode, enter, fits_decode, is_decode, left_to_compute, take_kv
from engine.server.plan import drop, is_named, name
from engine.server.policy import Policy
from engine.server.state import WAITING, Plan, View

INIT_RATIO, MIN_FACTOR, DECAY_STEPS, RETRACT_STEPS = 0.7, 0.14, 600, 20
"""Of the new-token ratio: at first, its least share of that, decode iterations to get there, tokens that every decode
is granted after a retraction (environ.py: SGLANG_INIT_NEW_TOKEN_RATIO and so on)."""
CLIP = 4096
"""Output tokens that are expected of a request at most (SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION)."""

WAITER = np.dtype(
    [
        ("member", MEMBER),  # the queue
        ("key", "f8"),  # smaller goes first
        ("asks", "f8"),  # output tokens that its user allows; 0: max_new_tokens
        ("seen_tokens", "i8"),  # prompt tokens that the server had processed when it came
    ],
    align=True,
)
"""What is remembered of a request."""

LINE = np.dtype(
    [
        ("members", "i8"),  # requests in the queue
        ("seen", SEEN),
        ("full", "i8"),  # 1: nobody is let in before somebody has left
        ("left", "i8"),  # requests that had left when it was last asked
        ("trusted", "f8"),  # how far the new-token ratio has come down from where it begins
    ],
    align=True,
)
"""What is remembered of the server."""


class Line(NamedTuple):
    """The queue in the memory of a policy, and its rules."""

    row: Any  # LINE
    request: Any  # WAITER[requests]
    rule: Any  # parameters of PrefillFirst


@dataclass(frozen=True)
class PrefillFirst(Policy):
    """What policies on SGLang's batches have in common."""

    chunked_prefill_size: Tokens = 4096
    """Prompt tokens per iteration; SGLang takes 4096 on a GPU of 35 to 60 GB, 2048 below, 8192 above."""
    max_prefill_tokens: Tokens = 16384
    """Prompt tokens per iteration from which on no further prompt joins."""
    max_new_tokens: Tokens = 1024
    """Output tokens that users ask for at most (the model length also applies); an output may exceed it."""
    schedule_conservativeness: NumberFrom0 = 1.0
    """Times 0.7: share of the output tokens allowed that running requests are expected to need at first."""
    enable_mixed_chunk: bool = False
    """Decodes run beside prompts, and count against their tokens; otherwise they wait."""

    eviction: ClassVar[str] = "fewest output tokens, then longest prompt, until all decodes fit; recompute"


line_rule = record(params_of(PrefillFirst))


@inner
def _asked(view: View, line: Line, i: int) -> int:
    """Output tokens that request `i` may still have, as SGLang expects them at most."""
    r, asks = view.request[i], line.request[i].asks
    most = own_maximum(view.row[0], r, int(asks if asks > 0.0 else line.rule.max_new_tokens))
    return min(most - r.generated, CLIP)


@inner
def _queue_up(view: View, plan: Plan, line: Line, i: int) -> None:
    """Put a waiting request at the end of the queue, or refuse what the model cannot hold."""
    if line.request[i].member.is_listed > 0 or view.request[i].status != WAITING:
        return
    if view.request[i].prompt > view.row[0].max_model_len:
        drop(plan, i)
        return
    line.row.members = join(line.request.member, line.row.members, i)
    line.request[i].seen_tokens = view.row[0].prefill_tokens


@inner
def line_up(view: View, plan: Plan, line: Line) -> int:
    """Let the queue be those who wait: arrivals and, behind them, those that were retracted come to its end.

    Returns:
        The place of the first newcomer.
    """
    lines, m, kept = line.request.member, line.row, 0
    for k in range(m.members):
        i = lines[k].listed
        if view.request[i].status == WAITING:
            lines[kept].listed = i
            kept += 1
        else:
            lines[i].is_listed = 0
    m.members = kept
    lost, first = look_at_queue(view, m.seen)
    for i in range(first, view.row[0].next_arrival):
        _queue_up(view, plan, line, i)
    for k in range(lost - 1, -1, -1):
        _queue_up(view, plan, line, view.queue[k])
    return kept


@inner
def sort_line(line: Line) -> None:
    """Sort the queue by key; equals stay in their order."""
    lines = line.request
    for end in range(1, line.row.members):
        i, k = lines[end].member.listed, end
        while k > 0 and lines[lines[k - 1].member.listed].key > lines[i].key:
            lines[k].member.listed = lines[k - 1].member.listed
            k -= 1
        lines[k].member.listed = i


@inner
def may_prefill(view: View, line: Line) -> bool:
    """Whether prompts are looked for at all."""
    row = view.row[0]
    if row.num_running == 0:
        line.row.full = 0
        if row.num_waiting == 0:
            line.row.trusted = 0.0  # nobody is here: expectations begin anew
    return bool(row.num_prefilling > 0 or (row.num_waiting > 0 and line.row.full == 0))


@inner
def _first_ratio(line: Line) -> float:
    """The new-token ratio at first."""
    return float(min(INIT_RATIO * line.rule.schedule_conservativeness, 1.0))


@inner
def _spare_tokens(view: View, line: Line) -> float:
    """KV tokens that are free beyond what the decodes are expected to need still."""
    row = view.row[0]
    ratio, spare = _first_ratio(line) - line.row.trusted, float(row.free_blocks * row.block_size)
    for j in range(row.num_running):
        i = view.running[j]
        if is_decode(view.request[i]):
            spare -= ratio * _asked(view, line, i)
    return spare


@inner
def _go_on(view: View, plan: Plan, line: Line, room: int, spare: float) -> float:
    """Chunks of started prompts within `room` tokens; returns the KV tokens that are spare behind them."""
    row, draft, before = view.row[0], plan.draft[0], plan.draft[0].tokens
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        left = room - (draft.tokens - before)
        if left > 0 and not is_decode(r):
            spare -= _asked(view, line, i) if r.prompt - r.prefilled <= left else 0
            chunk(view, plan, i, left)
    return spare


@inner
def _join(view: View, plan: Plan, line: Line, i: int, room: int, spare: float) -> float:
    """Let request `i` in with a chunk of `room` tokens at most.

    Returns:
        KV tokens that are spare behind it; -1: there is no room for it.
    """
    row, draft, r = view.row[0], plan.draft[0], view.request[i]
    blocks, asked = blocks_to_admit(r, row.block_size), _asked(view, line, i)
    nobody = draft.seats == 0  # SGLang cuts what users ask for until it fits an empty server
    if blocks > draft.free or (not nobody and blocks * row.block_size + asked + row.block_size >= spare):
        return -1.0
    left = left_to_compute(view, plan, i)
    enter(view, plan, i, min(left, room))
    taken = blocks * row.block_size + (asked if left <= room else 0) + row.block_size
    return float(max(spare - taken, 0.0))


@inner
def _let_in(view: View, plan: Plan, line: Line, room: int, spare: float, whole: bool) -> None:
    """Requests from the queue while tokens, seats and expected KV last; the first that has no KV keeps out the rest.

    Args:
        view: the server.
        plan: receives the chunks.
        line: the queue, sorted.
        room: prompt tokens that are left.
        spare: KV tokens that are spare.
        whole: whether only prompts that fit as a whole may start.
    """
    row, draft, start = view.row[0], plan.draft[0], plan.draft[0].tokens
    for k in range(line.row.members):
        i, left = line.request[k].member.listed, room - (draft.tokens - start)
        if left <= 0 or (whole and left_to_compute(view, plan, i) > left):
            return
        if draft.seats < row.max_num_seqs:
            spare = _join(view, plan, line, i, left, spare)
        else:
            spare = -1.0
        if spare < 0.0:
            line.row.full = 1
            return


@inner
def _room_for_shorter(view: View, line: Line, budget: int) -> int:
    """Tokens that shorter prompts in the queue take from a started one (`shortest_prefill_chunk_limit`)."""
    row, left, kept = view.row[0], 0, 0
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        left = max(left, r.prompt - r.prefilled)
    for k in range(line.row.members):
        work = view.request[line.request[k].member.listed].prompt
        if work >= left or kept + work > budget - 1:
            break
        kept += work
    return kept


@inner
def _mix_decodes(view: View, plan: Plan) -> None:
    """One token for every decode that finds room beside the prompts."""
    row, draft = view.row[0], plan.draft[0]
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if draft.tokens < row.max_batched_tokens and is_decode(r) and fits_decode(view, plan, i):
            decode(view, plan, i)


@inner
def prefill(view: View, plan: Plan, line: Line, shortest: bool) -> bool:
    """A batch of prompts: chunks of started ones, then of those in the queue; False if none can run.

    Args:
        view: the server.
        plan: receives the batch.
        line: the queue, sorted.
        shortest: whether started prompts leave room for shorter ones, and wait alone for the next chunk.
    """
    row, p, draft = view.row[0], line.rule, plan.draft[0]
    decodes = row.num_running - row.num_prefilling if p.enable_mixed_chunk else 0
    room = min(int(p.chunked_prefill_size), min(int(p.max_prefill_tokens), row.max_batched_tokens)) - decodes
    started = row.num_prefilling > 0
    kept = _room_for_shorter(view, line, room) if shortest and started else 0
    if room > 0:
        spare = _go_on(view, plan, line, room - kept, _spare_tokens(view, line))
        if line.row.full == 0:
            _let_in(view, plan, line, room - draft.tokens, spare, shortest and started)
    if draft.tokens == 0:
        return False
    if decodes > 0:
        _mix_decodes(view, plan)
    return True


@inner
def _next_to_retract(view: View, plan: Plan) -> int:
    """The decode with the fewest output tokens, of these the one with the longest prompt, the last of equals."""
    best = -1
    for j in range(view.row[0].num_running):
        i = view.running[j]
        r, b = view.request[i], view.request[max(best, 0)]
        if not is_decode(r) or is_named(plan, i):
            continue
        longer = r.length - r.generated >= b.length - b.generated
        if best < 0 or r.generated < b.generated or (r.generated == b.generated and longer):
            best = i
    return best


@inner
def _retract(view: View, plan: Plan, line: Line, needed: int, decodes: int) -> None:
    """Take the KV of decodes until the others, one at least, fit; expect as much of these as they have shown."""
    row, draft, out, asked = view.row[0], plan.draft[0], 0, 0
    while needed > draft.free and decodes > 1:
        i = _next_to_retract(view, plan)
        needed -= decode_need(view.request[i], row.block_size)
        name(plan, i)
        take_kv(view, plan, i)
        decodes -= 1
    for j in range(row.num_running):  # prompts in progress hold the rest: SGLang would end the last decode here
        i = view.running[j]
        if needed > draft.free and not is_decode(view.request[i]):
            take_kv(view, plan, i)
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if is_decode(r) and not is_named(plan, i):
            out += r.generated
            asked += r.generated + _asked(view, line, i)
    line.row.trusted = _first_ratio(line) - min(1.0, (out + RETRACT_STEPS * decodes) / (asked + 1.0))


@inner
def decode_all(view: View, plan: Plan, line: Line) -> None:
    """One token for every decode; where KV is short some are retracted."""
    row, draft, m = view.row[0], plan.draft[0], line.row
    needed, decodes = row.decode_needs_free_block, 0
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        if is_decode(r):
            decodes += 1
            needed += decode_need(r, row.block_size)
    if needed > draft.free:
        _retract(view, plan, line, needed, decodes)
        m.full = 0
    else:
        first = _first_ratio(line)
        m.trusted = min(m.trusted + first * (1.0 - MIN_FACTOR) / DECAY_STEPS, first * (1.0 - MIN_FACTOR))
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if draft.tokens < row.max_batched_tokens and is_decode(r) and not is_named(plan, i):
            if fits_decode(view, plan, i):
                decode(view, plan, i)
    gone = row.finished + row.evictions + row.swaps
    if gone != m.left:  # noticed here, after this iteration's look for prompts, as there
        m.full, m.left = 0, gone
