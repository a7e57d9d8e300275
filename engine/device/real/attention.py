"""Attention of one hybrid batch for `transformers`: decodes and prompt chunks of many requests in one forward.

The KV of each layer is one buffer of tokens; a request's lies in one extent of it that begins at a multiple of PAGE
tokens, so that kernels with and without paging find it. `register` makes the attention known to transformers through
its public registry, once for each way KERNELS to launch it on CUDA; what belongs to the batch travels down to it as the
keyword argument ``layout``. The ways differ in what a batch with both decodes and prompt chunks costs:

- ``split``: FlashAttention 2, two launches: decodes first (with one query each they take a faster path), then chunks.
  The time of a batch becomes a sum of parts. Engines that call separate kernels do so (FlashInfer).
- ``joint``: FlashAttention 2, one launch of all. vLLM does so on GPUs before Hopper.
- ``fa3``: FlashAttention 3, one launch over paged KV, by the kernels that an installed vLLM brings. vLLM does so on
  Hopper.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.errors import InputError
from engine.server.features import QUERY_TILE

NAME = "llmsched"
PAGE = 16
"""KV tokens of a page: extents begin at multiples of it."""
KERNELS = ("split", "joint", "fa3")
"""Ways to launch the attention of a batch on CUDA."""


class Layout(NamedTuple):
    """Where the tokens of a batch belong; decodes come first, then the prompt chunks."""

    write: torch.Tensor  # int64[tokens], place of each token in the KV buffers
    cu_q: torch.Tensor  # int32[items + 1], first token of each item in the batch
    start: torch.Tensor  # int32[items + 1], first token of each item's extent; the last one is not used
    used: torch.Tensor  # int32[items], KV tokens of each item, this batch's included
    pages: torch.Tensor  # int32[items, >= pages of max_k], pages of each item's extent, for kernels with paging
    decodes: int  # items that are decodes
    max_q: int  # longest chunk, tokens
    max_k: int  # most KV tokens of an item

    @property
    def places(self) -> list[torch.Tensor]:
        """Its tensors."""
        return [self.write, self.cu_q, self.start, self.used, self.pages]

    @property
    def limits(self) -> list[int]:
        """Its numbers."""
        return [self.decodes, self.max_q, self.max_k]


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Layout, float], torch.Tensor]
"""Attention on CUDA, once the new KV is stored: queries, keys, values, layout and scale to [tokens, heads, dim]."""


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


def _flash2(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, layout: Layout, scale: float
) -> torch.Tensor:
    """One launch of PyTorch's flash attention; `seqused_k` makes ``start`` the start of an extent, not a boundary."""
    ends = (layout.cu_q, layout.start, layout.max_q, layout.max_k)
    options = {"scale": scale, "seqused_k": layout.used}
    causal = layout.max_q > 1
    out: torch.Tensor = torch.ops.aten._flash_attention_forward(
        q, k_cache, v_cache, *ends, 0.0, causal, False, **options
    )[0]
    return out


def _split(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
    """Two launches of `_flash2`, of the decodes and of the chunks."""
    n, parts = layout.decodes, []
    if n > 0:
        decodes = layout._replace(cu_q=layout.cu_q[: n + 1], start=layout.start[: n + 1], used=layout.used[:n], max_q=1)
        parts.append(_flash2(q[:n], k_cache, v_cache, decodes, scale))
    if q.shape[0] > n:
        chunks = layout._replace(cu_q=layout.cu_q[n:] - n, start=layout.start[n:], used=layout.used[n:])
        parts.append(_flash2(q[n:], k_cache, v_cache, chunks, scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _flash3(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, layout: Layout, scale: float
) -> torch.Tensor:
    """One launch of vLLM's FlashAttention 3, its arguments as vLLM's `flash_attn_varlen_func` gives them."""
    paged = (cache.view(-1, PAGE, *cache.shape[1:]) for cache in (k_cache, v_cache))
    out: torch.Tensor = torch.ops._vllm_fa3_C.fwd(
        q,
        *paged,
        *(None, None, None, None),  # new keys, new values, q_v, out
        layout.cu_q,
        *(None, None, None),  # cu_seqlens_k, cu_seqlens_k_new, seqused_q
        layout.used,
        layout.max_q,
        layout.max_k,
        layout.pages,
        *(None,) * 8,  # batch index, left padding, three of rotary, three of quantization
        scale,
        True,  # causal
        *(-1, -1),  # window
        0.0,  # soft cap
        True,  # rotary interleaved
        None,  # scheduler metadata
        *(0, None, 0),  # splits and packing of heads as the kernel likes, no multiprocessors left free
        None,  # sinks
        *(1, 0, None),  # context parallelism
    )[0]
    return out


def _operator(kernel: str, attend_cuda: Kernel) -> Any:
    """The operator of torch that stores the new KV, then attends each item to its own KV, causally."""

    @torch.library.custom_op(f"{NAME}::attend_{kernel}", mutates_args=("k_cache", "v_cache"))
    def attend(
        new: Sequence[torch.Tensor],
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        places: Sequence[torch.Tensor],
        limits: Sequence[int],
        scale: float,
    ) -> torch.Tensor:
        q, k, v = new
        layout = Layout._make((*places, *limits))
        k_cache.index_copy_(0, layout.write, k)
        v_cache.index_copy_(0, layout.write, v)
        if q.is_cuda:
            return attend_cuda(q, k_cache, v_cache, layout, scale)
        return reference(q, k_cache, v_cache, layout.cu_q, layout.start, layout.used, scale)

    @attend.register_fake
    def _(new: Sequence[torch.Tensor], *others: Any) -> torch.Tensor:
        return torch.empty_like(new[0])

    return attend


OPERATORS = {
    kernel: _operator(kernel, attend_cuda)
    for kernel, attend_cuda in zip(KERNELS, (_split, _flash2, _flash3), strict=True)
}
"""Operators of torch by kernel.

Arguments: the new queries [tokens, heads, dim], keys and values [tokens, KV heads, dim]; the buffers of keys and values
[buffer tokens, KV heads, dim]; the tensors and the numbers of a `Layout`, since operators take no tuples; the factor on
the scores. Returns [tokens, heads, dim]. On a CPU all of them are `reference`.
"""


def load_kernel(kernel: str, device: str = "cuda") -> None:
    """Load what a way to attend needs beyond torch.

    Raises:
        InputError: no such way, or vLLM's kernels are not there or do not fit this torch.
    """
    if kernel not in KERNELS:
        raise InputError(f"executor: attention: expected {', '.join(KERNELS[:-1])} or {KERNELS[-1]}, got {kernel!r}")
    if kernel == "fa3":
        if device != "cuda" or torch.cuda.get_device_capability()[0] != 9:
            raise InputError("executor: attention: fa3 expected a Hopper GPU (compute capability 9)")
        try:
            torch.ops.load_library(str(_flash3_library()))  # type: ignore[no-untyped-call]
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"executor: attention: fa3: expected a vLLM for torch {torch.__version__}: {reason}"
            ) from None


def _flash3_library() -> Path:
    """Where an installed vLLM has its FlashAttention 3; it need not be imported.

    Raises:
        InputError: there is none.
    """
    vllm = importlib.util.find_spec("vllm")
    for place in (vllm.submodule_search_locations if vllm else None) or ():
        if (file := Path(place) / "vllm_flash_attn" / "_vllm_fa3_C.abi3.so").is_file():
            return file
    raise InputError("executor: attention: fa3 expected an installed vLLM with FlashAttention 3, found none")


def _attention_by(kernel: str) -> Callable[..., tuple[torch.Tensor, None]]:
    """An attention function as transformers calls it: [1, heads, tokens, dim] in, [1, tokens, heads, dim] out."""
    attend = getattr(torch.ops.llmsched, f"attend_{kernel}")

    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: object,
        scaling: float,
        layout: Layout,
        **others: object,
    ) -> tuple[torch.Tensor, None]:
        new = [x[0].transpose(0, 1).contiguous() for x in (query, key, value)]
        return attend(new, module.k_cache, module.v_cache, layout.places, layout.limits, scaling)[None], None

    return attention


def registered(kernel: str) -> str:
    """Make attention by a kernel known to transformers; returns its name there. May be called again.

    There is no mask function of that name: then transformers builds no mask, nor looks (and waits) for packed sequences
    in the positions. `Layout` says who may see what.
    """
    from transformers import AttentionInterface

    name = f"{NAME}_{kernel}"
    AttentionInterface.register(name, _attention_by(kernel))
    return name
