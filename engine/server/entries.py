"""What one entry of a plan may ask for, and doing it."""

import numpy as np

from engine.compiled.jit import inner
from engine.server.kv import (
    blocks_at_admission,
    carry_out,
    chunk_need,
    found_again,
    growth,
    host_need,
    tokens_left,
)
from engine.server.state import DROP, EVICT, RUNNING, SWAP, SWAP_COMPRESSED, WAITING, Server, View

ILLEGAL = (
    "",
    "evicts a request that holds no KV",
    "drops a request that is not waiting",
    "schedules a request twice in one iteration",
    "schedules a request that has not arrived or has left",
    "asks for more than max_num_seqs requests with KV",
    "asks for more KV blocks than are free",
    "asks for more tokens than max_batched_tokens",
    "asks for more prompt tokens than remain",
    "asks a decode for a number of tokens other than 1",
    "has a token count that is neither positive nor EVICT, DROP, SWAP, SWAP_COMPRESSED",
    "swaps more KV than the host has room for",
    "is the last one that fits: the plan names more entries than it holds",
)
"""What a plan entry did wrong; the index is the error code of `begin`."""
_NO_KV, _NOT_WAITING, _TWICE, _ABSENT, _SEATS, _BLOCKS, _TOKENS, _CHUNK, _DECODE, _COUNT, _HOST, TOO_MANY = range(
    1, len(ILLEGAL)
)
CODE_SHIFT = len(ILLEGAL)


@inner
def _release_fault(row: np.record, r: np.record, tokens: int) -> int:
    """What is wrong with an eviction, a refusal or a swap; 0: nothing."""
    if tokens == DROP:
        return 0 if r.status == WAITING else _NOT_WAITING
    if r.status != RUNNING:
        return _NO_KV
    if r.last_run == row.iterations:
        return _TWICE
    if tokens == EVICT:
        return 0
    return _HOST if host_need(row, r, tokens == SWAP_COMPRESSED) > row.free_host else 0


@inner
def _tokens_fault(row: np.record, r: np.record, tokens: int, used_tokens: int) -> int:
    """What is wrong with serving so many tokens of a request; 0: nothing."""
    if r.status != WAITING and r.status != RUNNING:
        return _ABSENT
    if r.last_run == row.iterations:
        return _TWICE
    if used_tokens + tokens > row.max_batched_tokens:
        return _TOKENS
    if tokens > tokens_left(r):
        return _DECODE if r.prefilled == r.prompt else _CHUNK
    return 0


@inner
def _memory_fault(row: np.record, r: np.record, tokens: int, reserve: int) -> int:
    """What a request that is served lacks, a seat or KV blocks; 0: nothing."""
    if r.status == WAITING:
        if row.num_running + row.leaving >= row.max_num_seqs:
            return _SEATS
        found = found_again(row, r, row.free_blocks, row.returned)
        need = blocks_at_admission(r, tokens, reserve, found, row.block_size)
    else:
        need = growth(r, row.block_size) if r.prefilled == r.prompt else chunk_need(r, tokens, row.block_size)
    return _BLOCKS if need > row.free_blocks else 0


@inner
def _fault(view: View, i: int, tokens: int, reserve: int, used_tokens: int) -> int:
    """Error code (index into ILLEGAL) of one entry in the present state; 0 if it can be done."""
    row = view.row[0]
    if i < 0 or i >= row.next_arrival:
        return _ABSENT
    r = view.request[i]
    if tokens == EVICT or tokens == DROP or tokens == SWAP or tokens == SWAP_COMPRESSED:
        return _release_fault(row, r, tokens)
    if tokens <= 0:
        return _COUNT
    code = _tokens_fault(row, r, tokens, used_tokens)
    return code if code != 0 else _memory_fault(row, r, tokens, reserve)


@inner
def _cut(view: View, i: int, tokens: int, used_tokens: int) -> int:
    """As many of the tokens asked for as request `i` can take in this batch."""
    row = view.row[0]
    if tokens <= 0 or i < 0 or i >= row.next_arrival:
        return tokens
    r = view.request[i]
    if r.prefilled < r.prompt:
        return min(tokens, min(r.prompt - r.prefilled, row.max_batched_tokens - used_tokens))
    return 1 if r.status == RUNNING or r.status == WAITING else tokens


@inner
def book(server: Server, k: int, used_tokens: int, strict: bool) -> tuple[int, int]:
    """Do what entry `k` asks for outside the batch itself: eviction, drop, admission, blocks.

    Who finds some of its KV again gets no more tokens than it lacks then.

    Returns:
        (tokens that the entry adds to the batch, error code); without `strict` there is no error, only 0 tokens.
    """
    view, entry = server.visible, server.plan.entry[k]
    i, n = entry.request, entry.tokens
    if not strict:
        n = _cut(view, i, n, used_tokens)
    code = _fault(view, i, n, entry.reserve, used_tokens)
    if code != 0:
        if not strict:
            entry.tokens = 0
        return 0, code if strict else 0
    carry_out(server, i, n, entry.reserve)
    entry.tokens = min(n, tokens_left(view.request[i]))
    return max(entry.tokens, 0), 0
