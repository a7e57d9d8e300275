"""Attention of a hybrid batch, in tiles of queries and by the launches of each kernel, against the plain formula."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.device.real import attention
from engine.device.real.attention import KERNELS, OPERATORS, PAGE, Layout, reference

HEADS, KV_HEADS, DIM, BUFFER = 4, 2, 8, 2016
CASES = {
    "decodes": ([1, 1, 1], [1, 40, 129], 3),
    "chunks": ([1, 7, 128, 129, 300], [1, 7, 200, 129, 555], 0),
    "both": ([1, 1, 256, 33], [513, 64, 256, 400], 2),
}
"""New tokens of each item, its KV tokens, how many of them are decodes."""


class Case:
    """A hybrid batch with random numbers in it, every extent with a gap behind, at the beginning of a page."""

    def __init__(self, new: list[int], used: list[int], decodes: int) -> None:
        """Draw queries, new KV and what is in the buffers."""
        draw = torch.Generator().manual_seed(0)
        self.new, self.lengths, self.decodes = new, used, decodes
        starts = np.cumsum([PAGE, *[-(-(length + 5) // PAGE) * PAGE for length in used]])
        edges = np.cumsum([0, *new])
        places = [s + length - n + np.arange(n) for s, length, n in zip(starts, used, new, strict=False)]
        self.write = torch.tensor(np.concatenate(places))
        self.cu_q, self.start, self.used = (torch.tensor(x, dtype=torch.int32) for x in (edges, starts, used))
        self.pages = (self.start[:-1, None] // PAGE) + torch.arange(-(-max(used) // PAGE), dtype=torch.int32)
        self.q, self.k, self.v = (torch.randn(sum(new), h, DIM, generator=draw) for h in (HEADS, KV_HEADS, KV_HEADS))
        self.caches = [torch.randn(BUFFER, KV_HEADS, DIM, generator=draw) for _ in range(2)]

    @property
    def new_tokens(self) -> list[torch.Tensor]:
        """Queries, keys and values of the new tokens."""
        return [self.q, self.k, self.v]

    @property
    def layout(self) -> Layout:
        """Where the items lie."""
        places = (self.write, self.cu_q, self.start, self.used, self.pages)
        return Layout(*places, self.decodes, max(self.new), max(self.lengths))

    def reference(self) -> torch.Tensor:
        """Attention to the buffers as they are."""
        return reference(self.q, self.caches[0], self.caches[1], self.cu_q, self.start, self.used, DIM**-0.5)

    def expected(self) -> torch.Tensor:
        """One item after the other, by the definition of causal attention; call after the new KV is stored."""
        rows = []
        for i, (n, length) in enumerate(zip(self.new, self.lengths, strict=True)):
            first, start = int(self.cu_q[i]), int(self.start[i])
            for j in range(n):
                seen = slice(start, start + length - n + j + 1)
                keys, values = (cache[seen].repeat_interleave(HEADS // KV_HEADS, 1) for cache in self.caches)
                scores = torch.einsum("hd,khd->hk", self.q[first + j], keys) * DIM**-0.5
                rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values))
        return torch.stack(rows)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", CASES)
def test_tiles_of_queries_attend_as_the_definition_says(name: str, kernel: str) -> None:
    case = Case(*CASES[name])
    found = OPERATORS[kernel](case.new_tokens, *case.caches, case.layout.places, case.layout.limits, DIM**-0.5)
    torch.testing.assert_close(found, case.expected(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(case.caches[0][case.write], case.k)


def flash_on_a_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    causal: bool,
    debug: bool,
    *,
    scale: float,
    seqused_k: torch.Tensor,
) -> tuple[torch.Tensor]:
    """What ATen's `_flash_attention_forward` does with these arguments: causal from the bottom right corner."""
    assert cu_q.dtype == cu_k.dtype == seqused_k.dtype == torch.int32
    assert len(cu_q) == len(cu_k) == len(seqused_k) + 1
    assert int(cu_q[0]) == 0
    assert int(cu_q[-1]) == len(q)
    assert (dropout, debug) == (0.0, False)
    parts = []
    for first, last, start, used in zip(cu_q, cu_q[1:], cu_k, seqused_k, strict=False):
        n, length = int(last - first), int(used)
        assert n <= max_q
        assert length <= max_k
        mask = torch.ones(n, length, dtype=torch.bool).tril(length - n) if causal else None
        extent = slice(int(start), int(start) + length)
        a, b, c = (x.transpose(0, 1)[None] for x in (q[int(first) : int(last)], k[extent], v[extent]))
        parts.append(scaled_dot_product_attention(a, b, c, attn_mask=mask, scale=scale, enable_gqa=True)[0])
    return (torch.cat([part.transpose(0, 1) for part in parts]),)


@pytest.mark.parametrize("kernel", ["split", "joint"])
@pytest.mark.parametrize("name", CASES)
def test_flash_launches_are_told_what_belongs_to_whom(name: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(*CASES[name])
    launches: list[tuple[int, bool]] = []

    def flash(*arguments: Any, **options: Any) -> tuple[torch.Tensor]:
        launches.append((arguments[5], arguments[8]))
        return flash_on_a_cpu(*arguments, **options)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    attend = {"split": attention._split, "joint": attention._flash2}[kernel]
    found = attend(case.q, case.caches[0], case.caches[1], case.layout, DIM**-0.5)
    torch.testing.assert_close(found, case.reference())
    decodes, chunks = case.decodes > 0, case.decodes < len(case.new)
    longest = (max(case.new), max(case.new) > 1)
    apart = [(1, False)] * decodes + [(max(case.new), True)] * chunks
    assert launches == (apart if kernel == "split" else [longest])


@pytest.mark.parametrize("name", CASES)
def test_flash_3_finds_the_pages_of_each_item(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(*CASES[name])

    def fwd(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any) -> tuple[torch.Tensor, ...]:
        """What vLLM's kernel does with a table of pages: each item's keys and values are gathered, then attended."""
        assert len(others) == 34
        assert k.shape[1] == PAGE
        cu_q, used, max_q, max_k, pages = others[4], others[8], others[9], others[10], others[11]
        scale, causal = others[20], others[21]
        keys, values = (cache[pages.clamp(max=len(cache) - 1)].flatten(1, 2).flatten(0, 1) for cache in (k, v))
        start = torch.arange(len(used) + 1, dtype=torch.int32) * pages.shape[1] * PAGE
        places = (keys, values, cu_q, start, max_q, max_k)
        return flash_on_a_cpu(q, *places, 0.0, causal, False, scale=scale, seqused_k=used)

    monkeypatch.setattr(torch.ops, "_vllm_fa3_C", SimpleNamespace(fwd=fwd), raising=False)
    found = attention._flash3(case.q, case.caches[0], case.caches[1], case.layout, DIM**-0.5)
    torch.testing.assert_close(found, case.reference())
