"""KV blocks and the queue: what one plan entry may ask for, and what admission, eviction and refusal do.

KV is counted in blocks: a request is admitted with the blocks of its whole prompt, a decode takes one more when its
last block is full, an eviction gives all of them back and puts the request at the head of the queue to prefill prompt +
generated tokens again. A swap gives them back too, but the KV waits in the host's memory, in half blocks (two for a
block as it is, one for a compressed one), and the request goes on where it was when it is admitted again.
"""

import numpy as np

from engine.compiled.jit import hot, inner
from engine.server.state import DROP, DROPPED, EVICT, RUNNING, SWAP, SWAP_COMPRESSED, WAITING, Server, View

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


@hot
def blocks_for(tokens: int, block_size: int) -> int:
    """KV blocks that hold this many tokens."""
    return (tokens + block_size - 1) // block_size


@hot
def decode_need(r: np.record, block_size: int) -> int:
    """KV blocks that the next decode of request `r` takes: 1 if its last block is full, else 0."""
    return 1 if r.length > r.blocks * block_size else 0


@hot
def growth(r: np.record, block_size: int) -> int:
    """As `decode_need`, 0 for who was admitted with the KV of the longest request, also past max_model_len."""
    return decode_need(r, block_size) & (1 - r.reserved)  # no branch: this is asked for every token


@hot
def blocks_to_admit(r: np.record, block_size: int) -> int:
    """KV blocks that the waiting request `r` needs: those of its prompt, swapped in the middle of its output more."""
    return blocks_for(r.length, block_size)


@hot
def tokens_left(r: np.record) -> int:
    """Tokens that request `r` can take in one iteration: the rest of its prompt, then 1."""
    return max(1, r.prompt - r.prefilled)


@hot
def _stored_tokens(row: np.record, r: np.record) -> int:
    """Tokens whose KV a running request holds; the latest output token has not been processed yet."""
    stored = r.prefilled + r.length - r.prompt
    return stored - row.prompt_emits if r.prefilled == r.prompt else stored


@hot
def host_need(row: np.record, r: np.record, compressed: bool) -> int:
    """Half blocks that the KV of the running request `r` takes in the host's memory."""
    used = min(r.blocks, blocks_for(_stored_tokens(row, r), row.block_size))
    return used if compressed else 2 * used


@inner
def free_place(server: Server) -> None:
    """Let the next request of a closed loop into the place of one that leaves now: its arrival time becomes known.

    Times of requests that have not arrived stay in order; until then they are only times.
    """
    row, request = server.visible.row[0], server.visible.request
    k = row.released
    if row.places == 0 or k >= row.num_requests:
        return
    due = server.hidden.release[k]
    time = row.now + due if row.thinks else max(row.now, due)
    while k > row.next_arrival and request[k - 1].arrival > time:
        request[k].arrival = request[k - 1].arrival
        k -= 1
    request[k].arrival = time
    row.released += 1


@inner
def _leave_queue(view: View, i: int) -> None:
    row = view.row[0]
    k = 0
    while view.queue[k] != i:
        k += 1
    for j in range(k, row.num_waiting - 1):
        view.queue[j] = view.queue[j + 1]
    row.num_waiting -= 1


@inner
def _requeue(view: View, i: int) -> None:
    """Take the blocks of a running request away and put it at the head of the queue."""
    row, r = view.row[0], view.request[i]
    k = 0
    while view.running[k] != i:
        k += 1
    for j in range(k, row.num_running - 1):
        view.running[j] = view.running[j + 1]
    row.num_running -= 1
    for j in range(row.num_waiting, 0, -1):
        view.queue[j] = view.queue[j - 1]
    view.queue[0] = i
    row.num_waiting += 1
    row.free_blocks += r.blocks
    if r.prefilled < r.prompt:
        row.num_prefilling -= 1
    r.blocks = 0
    r.status = WAITING


@inner
def _evict(server: Server, i: int) -> None:
    row, r = server.visible.row[0], server.visible.request[i]
    row.evictions += 1
    row.recomputed_tokens += _stored_tokens(row, r)
    _requeue(server.visible, i)
    r.evictions += 1
    r.prompt = r.length
    r.prefilled = 0
    if not row.eviction_keeps_output:
        server.hidden.ledger[i].delivered += r.generated
        r.generated = 0


@inner
def _swap(server: Server, i: int, compressed: bool) -> None:
    row, r = server.visible.row[0], server.visible.request[i]
    r.host = host_need(row, r, compressed)
    row.free_host -= r.host
    row.swapped_out += r.host
    row.swaps += 1
    row.moved += r.host
    _requeue(server.visible, i)


@inner
def _admit(server: Server, i: int, blocks: int, reserve: int) -> None:
    view = server.visible
    row, r = view.row[0], view.request[i]
    _leave_queue(view, i)
    k = row.num_running
    while k > 0 and view.running[k - 1] > i:
        view.running[k] = view.running[k - 1]
        k -= 1
    view.running[k] = i
    row.num_running += 1
    if r.prefilled < r.prompt:
        row.num_prefilling += 1
    row.free_blocks -= blocks
    r.blocks = blocks
    r.reserved = -reserve >= blocks_for(row.max_model_len, row.block_size)
    r.status = RUNNING
    if r.host > 0:
        row.swapped_in += r.host
        row.moved += r.host
        _leave_host(row, r)


@inner
def _leave_host(row: np.record, r: np.record) -> None:
    row.free_host += r.host
    r.host = 0


@inner
def _drop(server: Server, i: int) -> None:
    row, r, h = server.visible.row[0], server.visible.request[i], server.hidden.ledger[i]
    _leave_queue(server.visible, i)
    _leave_host(row, r)
    r.status = DROPPED
    row.dropped += 1
    if not r.has_token:
        row.no_first_token -= 1
    if h.first_scheduled < 0.0:
        h.first_scheduled = row.now
    h.completed = row.now
    free_place(server)


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
def _memory_fault(row: np.record, r: np.record, reserve: int) -> int:
    """What a request that is served lacks, a seat or KV blocks; 0: nothing."""
    if r.status == WAITING:
        if row.num_running >= row.max_num_seqs:
            return _SEATS
        return _BLOCKS if max(abs(reserve), blocks_to_admit(r, row.block_size)) > row.free_blocks else 0
    return _BLOCKS if r.prefilled == r.prompt and growth(r, row.block_size) > row.free_blocks else 0


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
    return code if code != 0 else _memory_fault(row, r, reserve)


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
def _carry_out(server: Server, i: int, tokens: int, reserve: int) -> None:
    """Do what a legal entry asks for outside the batch itself."""
    row, r = server.visible.row[0], server.visible.request[i]
    if tokens == EVICT:
        _evict(server, i)
    elif tokens == DROP:
        _drop(server, i)
    elif tokens < 0:
        _swap(server, i, tokens == SWAP_COMPRESSED)
    elif r.status == WAITING:
        _admit(server, i, max(abs(reserve), blocks_to_admit(r, row.block_size)), reserve)
    elif r.prefilled == r.prompt:
        need = growth(r, row.block_size)
        r.blocks += need
        row.free_blocks -= need


@inner
def book(server: Server, k: int, used_tokens: int, strict: bool) -> tuple[int, int]:
    """Do what entry `k` asks for outside the batch itself: eviction, drop, admission, blocks.

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
    entry.tokens = n
    _carry_out(server, i, n, entry.reserve)
    return max(n, 0), 0
