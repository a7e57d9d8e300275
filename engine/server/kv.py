"""KV blocks and the queue: what admission, eviction and refusal do.

KV is counted in blocks: a request is admitted with the blocks of its whole prompt, or (`GROW`) with those of its first
chunk, and then each chunk takes what it lacks; a decode takes one more when its last block is full, an eviction gives
all of them back and puts the request at the head of the queue to prefill prompt + generated tokens again. A swap gives
them back too, but the KV waits in the host's memory, in half blocks (two for a block as it is, one for a compressed
one), and the request goes on where it was when it is admitted again.

With a prefix cache a request that was evicted goes on behind those of its full blocks that nobody has taken since. As
in vLLM's `FreeKVCacheBlockQueue` (vllm/v1/core/kv_cache_utils.py, 0.19), blocks are taken from the front of a queue and
come back to its end, those of a request from its last one to its first one; who finds some of its own again takes them
out of the queue wherever they stand. The queue itself need not be kept: of what stood in it when a request's blocks had
come back there is left what is free now and has not come back since.
"""

import numpy as np

from engine.compiled.jit import hot, inner
from engine.server.state import DROP, DROPPED, EVICT, GROW, RUNNING, SWAP_COMPRESSED, WAITING, Server, View


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
def chunk_need(r: np.record, tokens: int, block_size: int) -> int:
    """KV blocks that a chunk of the started prompt `r` takes: none if it was admitted with those of its prompt."""
    lacking = r.prefilled + tokens - r.blocks * block_size
    return blocks_for(lacking, block_size) if lacking > 0 else 0


@hot
def next_need(r: np.record, tokens: int, block_size: int) -> int:
    """KV blocks that a running request takes for its next tokens."""
    return decode_need(r, block_size) if r.prefilled == r.prompt else chunk_need(r, tokens, block_size)


@hot
def blocks_to_admit(r: np.record, block_size: int) -> int:
    """KV blocks that the waiting request `r` needs: those of its prompt, swapped in the middle of its output more."""
    return blocks_for(r.length, block_size)


@hot
def tokens_left(r: np.record) -> int:
    """Tokens that request `r` can take in one iteration: the rest of its prompt, then 1."""
    return max(1, r.prompt - r.prefilled)


@hot
def found_again(row: np.record, r: np.record, free: int, returned: int) -> int:
    """KV blocks that the waiting request `r` finds again if it is admitted now, those at its beginning.

    Args:
        row: the server.
        r: the request.
        free: KV blocks that are free now.
        returned: `row.returned` now.
    """
    return max(0, min(r.kept, free - (returned - r.returned)))


@hot
def blocks_at_admission(r: np.record, tokens: int, reserve: int, found: int, block_size: int) -> int:
    """KV blocks that the waiting request `r` takes if it is admitted.

    Args:
        r: the request.
        tokens: its first tokens.
        reserve: as in an entry of a plan.
        found: blocks among them that it finds again.
        block_size: tokens of a block.
    """
    if reserve != GROW:
        return max(abs(reserve), blocks_to_admit(r, block_size))
    if r.prefilled == r.prompt:  # swapped in the middle of its output
        return blocks_to_admit(r, block_size)
    return blocks_for(min(r.prefilled + found * block_size + tokens, r.prompt), block_size)


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
def give_back(row: np.record, r: np.record) -> None:
    """The KV blocks of a request become free."""
    row.free_blocks += r.blocks
    row.returned += r.blocks
    r.blocks = 0


@inner
def leave(row: np.record, r: np.record) -> None:
    """The KV blocks and the seat of a request that has finished become free, or will once the next plan is made."""
    if row.async_scheduling:
        row.leaving += 1
        row.leaving_blocks += r.blocks
        r.blocks = 0
    else:
        give_back(row, r)


@inner
def let_go(row: np.record) -> None:
    """What is left of requests that finished before the last plan was made becomes free."""
    row.free_blocks += row.leaving_blocks
    row.returned += row.leaving_blocks
    row.leaving, row.leaving_blocks = 0, 0


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
    give_back(row, r)
    if r.prefilled < r.prompt:
        row.num_prefilling -= 1
    r.status = WAITING


@inner
def _evict(server: Server, i: int) -> None:
    row, r = server.visible.row[0], server.visible.request[i]
    stored = _stored_tokens(row, r)
    row.evictions += 1
    row.recomputed_tokens += stored
    _requeue(server.visible, i)
    if row.finds_own:
        r.kept = min(stored, r.length - 1) // row.block_size  # the last token yields the next one: never found again
        r.returned = row.returned
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
def _find_again(view: View, i: int) -> None:
    """Let a request that is admitted go on behind what is still there of the KV that it lost."""
    row, r = view.row[0], view.request[i]
    found = found_again(row, r, row.free_blocks, row.returned)
    row.returned -= found
    k = 0
    while view.queue[k] != i:  # who lost KV later stands before it, and has those blocks before its own no more
        view.request[view.queue[k]].returned -= found
        k += 1
    r.kept = 0
    r.prefilled = found * row.block_size
    row.reused_tokens += r.prefilled
    row.recomputed_tokens -= r.prefilled


@inner
def join_running(view: View, i: int) -> None:
    """Put request `i` among the running ones, which are in the order of their numbers."""
    k = view.row[0].num_running
    while k > 0 and view.running[k - 1] > i:
        view.running[k] = view.running[k - 1]
        k -= 1
    view.running[k] = i
    view.row[0].num_running += 1


@inner
def _admit(server: Server, i: int, blocks: int, reserve: int) -> None:
    view = server.visible
    row, r = view.row[0], view.request[i]
    if r.kept > 0:
        _find_again(view, i)
    _leave_queue(view, i)
    join_running(view, i)
    if r.prefilled < r.prompt:
        row.num_prefilling += 1
    row.free_blocks -= blocks
    r.blocks = blocks
    r.reserved = reserve != GROW and -reserve >= blocks_for(row.max_model_len, row.block_size)
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
    r.kept = 0
    r.status = DROPPED
    row.dropped += 1
    if not r.has_token:
        row.no_first_token -= 1
    if h.first_scheduled < 0.0:
        h.first_scheduled = row.now
    h.completed = row.now
    free_place(server)


@inner
def carry_out(server: Server, i: int, tokens: int, reserve: int) -> None:
    """Do what a legal entry asks for outside the batch itself."""
    row, r = server.visible.row[0], server.visible.request[i]
    if tokens == EVICT:
        _evict(server, i)
    elif tokens == DROP:
        _drop(server, i)
    elif tokens < 0:
        _swap(server, i, tokens == SWAP_COMPRESSED)
    elif r.status == WAITING:
        found = found_again(row, r, row.free_blocks, row.returned)
        _admit(server, i, blocks_at_admission(r, tokens, reserve, found, row.block_size), reserve)
    else:
        need = growth(r, row.block_size) if r.prefilled == r.prompt else chunk_need(r, tokens, row.block_size)
        r.blocks += need
        row.free_blocks -= need
