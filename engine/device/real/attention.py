"""Attention of one hybrid batch for `transformers`: decodes and prompt chunks of many requests in one forward.

The KV of each layer is one buffer of tokens; a request's lies in one extent of it, so that no paging kernel is needed.
`register` makes the attention known to transformers through its public registry under the name NAME; what belongs to
the batch travels down to it as the keyword argument ``layout``. On CUDA there are two launches of flash attention in
each layer, decodes first: with one query each they take a faster path, and the time of a batch becomes a sum of parts.
"""

from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.server.features import QUERY_TILE

NAME = "llmsched"


class Layout(NamedTuple):
    """Where the tokens of a batch belong; decodes come first, then the prompt chunks."""

    write: torch.Tensor  # int64[tokens], place of each token in the KV buffers
    cu_q: torch.Tensor  # int32[items + 1], first token of each item in the batch
    start: torch.Tensor  # int32[items + 1], first token of each item's extent; the last one is not used
    used: torch.Tensor  # int32[items], KV tokens of each item, this batch's included
    decodes: int  # items that are decodes
    max_q: int  # longest chunk, tokens
    max_k: int  # most KV tokens of an item


@torch.library.custom_op("llmsched::attend", mutates_args=("k_cache", "v_cache"))
def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    write: torch.Tensor,
    cu_q: torch.Tensor,
    start: torch.Tensor,
    used: torch.Tensor,
    decodes: int,
    max_q: int,
    max_k: int,
    scale: float,
) -> torch.Tensor:
    """Store the new KV, then attend each item to its own KV, causally.

    Args:
        q: [tokens, heads, dim], the new queries.
        k: [tokens, KV heads, dim], the new keys.
        v: [tokens, KV heads, dim], the new values.
        k_cache: [buffer tokens, KV heads, dim], keys of all requests.
        v_cache: [buffer tokens, KV heads, dim], values of all requests.
        write: the fields of `Layout` from here to max_k, since operators of torch take no tuples: where new KV goes.
        cu_q: first token of each item.
        start: first token of each item's extent.
        used: KV tokens of each item.
        decodes: items that are decodes.
        max_q: longest chunk.
        max_k: most KV tokens of an item.
        scale: factor on the scores.

    Returns:
        [tokens, heads, dim].
    """
    k_cache.index_copy_(0, write, k)
    v_cache.index_copy_(0, write, v)
    if q.is_cuda:
        return _flash(q, k_cache, v_cache, Layout(write, cu_q, start, used, decodes, max_q, max_k), scale)
    return reference(q, k_cache, v_cache, cu_q, start, used, scale)


@attend.register_fake
def _(q: torch.Tensor, *others: Any) -> torch.Tensor:
    return torch.empty_like(q)


def reference(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cu_q: torch.Tensor,
    start: torch.Tensor,
    used: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """The same by calls of PyTorch's attention: what CPUs run, and what the GPU is checked against.

    One call takes up to QUERY_TILE queries of an item with the KV that the last of them sees, so that a long chunk
    costs little more than its (query, key) pairs.
    """
    out = torch.empty_like(q)
    edges, starts = cu_q.tolist(), start.tolist()
    for item, length in enumerate(used.tolist()):
        last = edges[item + 1]
        for first in range(edges[item], last, QUERY_TILE):
            end = min(first + QUERY_TILE, last)
            n, seen = end - first, length - (last - end)
            keys, values = (cache[starts[item] : starts[item] + seen].transpose(0, 1) for cache in (k_cache, v_cache))
            # Query j of a tile is token seen - n + j of its request.
            mask = torch.ones(n, seen, dtype=torch.bool, device=q.device).tril(seen - n) if n > 1 else None
            out[first:end] = scaled_dot_product_attention(
                q[first:end].transpose(0, 1)[None],
                keys[None],
                values[None],
                attn_mask=mask,
                scale=scale,
                enable_gqa=True,
            )[0].transpose(0, 1)
    return out


def _flash(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
    """Two launches of PyTorch's flash attention; `seqused_k` makes ``start`` the start of an extent, not a boundary."""
    flash, decodes = torch.ops.aten._flash_attention_forward, layout.decodes
    parts = []
    if decodes > 0:
        ends = (layout.cu_q[: decodes + 1], layout.start[: decodes + 1], 1, layout.max_k)
        options = {"scale": scale, "seqused_k": layout.used[:decodes]}
        parts.append(flash(q[:decodes], k_cache, v_cache, *ends, 0.0, False, False, **options)[0])
    if q.shape[0] > decodes:
        ends = (layout.cu_q[decodes:] - decodes, layout.start[decodes:], layout.max_q, layout.max_k)
        options = {"scale": scale, "seqused_k": layout.used[decodes:]}
        parts.append(flash(q[decodes:], k_cache, v_cache, *ends, 0.0, True, False, **options)[0])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    scaling: float,
    layout: Layout,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """In the shapes of transformers: [1, heads, tokens, dim] in, [1, tokens, heads, dim] out."""
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    out = torch.ops.llmsched.attend(q, k, v, module.k_cache, module.v_cache, *layout, scaling)
    return out[None], None


def register() -> None:
    """Make the attention known to transformers as NAME; may be called again.

    There is no mask function of that name: then transformers builds no mask, nor looks (and waits) for packed sequences
    in the positions. `Layout` says who may see what.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
