"""A plan in the making: what may be written into it, and what it knows of itself.

A plan is a list of entries (request, tokens). Beside it, it keeps the books that every scheduler needs: tokens of the
batch, KV blocks and seats left once it is done, who loses KV, who is in it (`engine.server.state.DRAFT`). The functions
here write entries; those of `engine.server.moves` keep the books of KV, seats and queue as well.
"""

from typing import Any

import numpy as np

from engine.compiled.jit import hot, inner
from engine.demand.requests import INT32_MAX
from engine.server.state import DROP, EVICT, SWAP, SWAP_COMPRESSED, Plan, View


@inner
def clear(view: View, plan: Plan) -> None:
    """Take everything out of a plan and open its books: as many free blocks and seats as the server has now."""
    row, draft = view.row[0], plan.draft[0]
    plan.size[0] = 0
    plan.wake[0] = np.inf
    draft.tokens = 0
    draft.free = row.free_blocks
    draft.seats = row.num_running + row.leaving
    draft.victims = 0
    draft.taken = 0
    draft.returned = row.returned
    draft.number += 1


@inner
def is_named(plan: Plan, i: int) -> bool:
    """Whether the plan serves or drops request `i` already."""
    return bool(plan.named[i] == plan.draft[0].number)


@inner
def name(plan: Plan, i: int) -> None:
    """Let request `i` count as one that the plan serves."""
    plan.named[i] = plan.draft[0].number


@inner
def releases(plan: Plan) -> bool:
    """Whether a plan without a batch, once `engine.server.core.begin` has taken it, changed anything for anybody."""
    for k in range(plan.size[0]):
        if plan.entry[k].tokens != 0:  # 0: an entry that could not be done
            return True
    return False


@inner
def append(plan: Plan, i: int, tokens: int, reserve: int = 0) -> None:
    """`schedule` for numbers that are known to fit an entry, which compiled code need not check again."""
    k = plan.size[0]
    if 0 <= k and k < plan.entry.shape[0]:
        entry = plan.entry[k]
        entry.request, entry.tokens, entry.reserve = i, tokens, reserve
    plan.size[0] = k + 1


@inner
def _exact(value: Any, otherwise: int) -> int:
    """A number as the 32 bits of an entry hold it; `otherwise` for what is no whole number or does not fit."""
    if -INT32_MAX <= value and value <= INT32_MAX and int(value) == value:
        return int(value)
    return otherwise


@hot
def schedule(plan: Plan, request: int, tokens: int, reserve: int = 0) -> None:
    """Add `tokens` of a request to the next iteration.

    Args:
        plan: the plan under construction.
        request: index of the request.
        tokens: 1 for a decode, the chunk size in tokens for a prefill.
        reserve: KV blocks to hold at least when this admits the request (0: what the prompt needs); negative: so many
            for its whole life, if they hold max_model_len tokens; `GROW`: those of its chunk, as of each later one.
    """
    i, n = _exact(request, -1), _exact(tokens, 0)
    append(plan, i, n, _exact(reserve, INT32_MAX))
    plan.draft[0].tokens += max(n, 0)
    if (n > 0 or n == DROP) and 0 <= i and i < plan.named.shape[0]:
        name(plan, i)


@hot
def evict(plan: Plan, request: int) -> None:
    """Take the KV of a request away before the next iteration."""
    schedule(plan, request, EVICT)


@hot
def swap(plan: Plan, request: int, compressed: bool = False) -> None:
    """Move the KV of a request to the host, as it is or in 8-bit numbers (`kv.host_need` says what it takes)."""
    schedule(plan, request, SWAP_COMPRESSED if compressed else SWAP)


@hot
def drop(plan: Plan, request: int) -> None:
    """Refuse to serve a waiting request."""
    schedule(plan, request, DROP)
    plan.draft[0].taken += 1
