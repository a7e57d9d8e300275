"""The moves of a scheduler: give decodes their token, admit from the queue, go on with prompts, take KV away.

A policy is mostly these calls. Each writes into the plan and keeps its books: `plan.draft[0]` says at any moment how
many tokens the batch has and what KV and seats are left once all of it is done, so that no policy has to count.
Sarathi-Serve is three of them:

    @kernel_of(Sarathi)
    def _plan(view, memory, plan):
        p, queue = _params(memory.params), Queue(_row(memory.row), _requests(memory.request))
        last = decode_oldest_first(view, plan)
        continue_prefills(view, plan, last, int(p.token_budget))
        admit_chunks(view, plan, queue, int(p.order), int(p.token_budget))

    _params, _row, _requests = record(params_of(Sarathi)), record(QUEUE), records(QUEUED)

They are the same for kernels and for policies in plain Python, which may call them in `plan` (interpreted there).
"""

import numpy as np

from engine.compiled.jit import hot, inner
from engine.server.kv import (
    blocks_at_admission,
    blocks_to_admit,
    chunk_need,
    decode_need,
    found_again,
    tokens_left,
)
from engine.server.plan import append, drop, is_named, name
from engine.server.queue import Queue, next_waiting
from engine.server.state import EVICT, SWAP, SWAP_COMPRESSED, WAITING, Plan, View


@inner
def is_decode(r: np.record) -> bool:
    """Whether a request that holds KV has its prompt done."""
    return bool(r.prefilled == r.prompt)


@hot
def remaining(row: np.record, r: np.record) -> float:
    """Output tokens that request `r` is predicted to lack still, >= 1; nan without a prediction.

    A prediction counts down with every token; what remains of one that is outlived is set by the run (`Forecast`).
    """
    left = r.prediction - r.generated
    if left < 1.0:
        left = max(1.0, 0.5 * r.generated) if row.stale_half else 1.0
    return float(left)


@inner
def fits_decode(view: View, plan: Plan, i: int) -> bool:
    """Whether the KV that the plan leaves allows request `i` its next decode."""
    row, free = view.row[0], plan.draft[0].free
    return bool(free > 0 or (decode_need(view.request[i], row.block_size) == 0 and not row.decode_needs_free_block))


@inner
def give(plan: Plan, i: int, tokens: int, reserve: int = 0) -> None:
    """So many tokens (at least 1) of request `i`, for which it has KV or gets what `reserve` says (`schedule`)."""
    append(plan, i, tokens, reserve)
    name(plan, i)
    plan.draft[0].tokens += tokens


@inner
def decode(view: View, plan: Plan, i: int) -> None:
    """One token of request `i`, whose prompt is done."""
    give(plan, i, 1)
    plan.draft[0].free -= decode_need(view.request[i], view.row[0].block_size)


@inner
def chunk(view: View, plan: Plan, i: int, most: int) -> None:
    """The next tokens of the started prompt of request `i`, `most` (at least 1) at most."""
    r = view.request[i]
    tokens = min(r.prompt - r.prefilled, most)
    give(plan, i, tokens)
    plan.draft[0].free -= chunk_need(r, tokens, view.row[0].block_size)


@inner
def _take_away(view: View, plan: Plan, i: int, how: int) -> None:
    draft = plan.draft[0]
    append(plan, i, how)
    plan.victim[draft.victims] = i
    draft.victims += 1
    draft.seats -= 1
    draft.free += view.request[i].blocks
    draft.returned += view.request[i].blocks


@inner
def take_kv(view: View, plan: Plan, i: int) -> None:
    """The KV of request `i` away: it stands at the head of the queue from now on, to be computed again."""
    _take_away(view, plan, i, EVICT)


@inner
def swap_out(view: View, plan: Plan, i: int, compressed: bool) -> None:
    """The KV of request `i` to the host, which has room for it: it waits at the head of the queue, to go on there."""
    _take_away(view, plan, i, SWAP_COMPRESSED if compressed else SWAP)


@inner
def fits(view: View, plan: Plan, i: int) -> bool:
    """Whether KV (above the watermark) and a seat are left to admit request `i`."""
    row, draft = view.row[0], plan.draft[0]
    enough = draft.free - blocks_to_admit(view.request[i], row.block_size) >= row.watermark_blocks
    return bool(enough and draft.seats < row.max_num_seqs)


@inner
def found_blocks(view: View, plan: Plan, i: int) -> int:
    """KV blocks of its own that request `i` finds again if it is admitted behind what is planned."""
    return found_again(view.row[0], view.request[i], plan.draft[0].free, plan.draft[0].returned)


@inner
def left_to_compute(view: View, plan: Plan, i: int) -> int:
    """Tokens that request `i` from the queue can take in one iteration if it is admitted behind what is planned."""
    return tokens_left(view.request[i]) - found_blocks(view, plan, i) * view.row[0].block_size


@inner
def enter(view: View, plan: Plan, i: int, tokens: int, reserve: int = 0) -> None:
    """The first tokens of request `i` from the queue, for policies with rules of their own on who may.

    Args:
        view: the server.
        plan: receives the chunk.
        i: the request.
        tokens: at least 1, at most what its prompt lacks (`left_to_compute`; the server cuts what it finds again).
        reserve: KV blocks to hold at least, as for `schedule`.
    """
    draft = plan.draft[0]
    found = found_blocks(view, plan, i)
    give(plan, i, tokens, reserve)
    draft.taken += 1
    draft.free -= blocks_at_admission(view.request[i], tokens, reserve, found, view.row[0].block_size)
    draft.returned -= found
    draft.seats += 1


@inner
def admit(view: View, plan: Plan, i: int, most: int) -> bool:
    """The first tokens of request `i` from the queue, `most` at most.

    Returns:
        False, and nothing is planned, if KV, seats or `most` do not allow it.
    """
    r = view.request[i]
    left = (
        left_to_compute(view, plan, i) if r.status == WAITING else r.prompt - r.prefilled
    )  # a victim is not evicted yet
    tokens = min(left, most)
    if tokens <= 0 or not fits(view, plan, i):
        return False
    enter(view, plan, i, tokens)
    return True


@inner
def admit_chunks(view: View, plan: Plan, queue: Queue, order: int, budget: int, looks_first: bool = False) -> None:
    """Admit from the queue while tokens, KV and seats last; the first that does not fit blocks the rest.

    Args:
        view: the server.
        plan: receives the chunks.
        queue: the policy's memory of the queue.
        order: FCFS, SPF, STRICT_SPF or WEIGHED.
        budget: tokens that the iteration may process.
        looks_first: whether over-long prompts at the head are dropped with the budget used up, too.
    """
    row, draft = view.row[0], plan.draft[0]
    looks_first = looks_first and not row.eviction_keeps_output  # elsewhere nobody gets over the limit
    while draft.tokens < budget or looks_first:
        i = next_waiting(view, plan, queue, order)
        if i < 0:
            break
        if view.request[i].prompt > row.max_model_len:
            drop(plan, i)
        elif not admit(view, plan, i, budget - draft.tokens):
            break


@inner
def decode_oldest_first(view: View, plan: Plan) -> int:
    """One token for every decode, oldest first; where no block is free the youngest unvisited request loses its KV.

    No more than the server's max_batched_tokens.

    Returns:
        How many of `running` still hold KV.
    """
    row, draft = view.row[0], plan.draft[0]
    j, last = 0, row.num_running
    while j < last and draft.tokens < row.max_batched_tokens:
        i = view.running[j]
        j += 1
        if not is_decode(view.request[i]):
            continue
        while not fits_decode(view, plan, i):
            last -= 1
            take_kv(view, plan, view.running[last])
            if last < j:
                break
        if last >= j:
            decode(view, plan, i)
    return last


@inner
def continue_prefills(view: View, plan: Plan, last: int, budget: int) -> None:
    """The next chunk of every started prompt among ``running[:last]``, oldest first, within a budget of tokens."""
    left, draft = view.row[0].num_prefilling, plan.draft[0]
    for j in range(last):
        if left == 0:
            break
        i = view.running[j]
        if is_decode(view.request[i]):
            continue
        left -= 1
        if draft.tokens < budget:
            chunk(view, plan, i, budget - draft.tokens)


__all__ = [
    "admit",
    "admit_chunks",
    "chunk",
    "continue_prefills",
    "decode",
    "decode_oldest_first",
    "enter",
    "fits",
    "fits_decode",
    "found_blocks",
    "give",
    "is_decode",
    "is_named",
    "left_to_compute",
    "remaining",
    "swap_out",
    "take_kv",
]
