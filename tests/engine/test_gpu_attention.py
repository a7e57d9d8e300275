"""Attention of a hybrid batch, in tiles of queries and as two flash launches, against the plain formula."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from engine.device.real import attention as gpu_attention
from engine.device.real.attention import Layout, attend, reference

HEADS, KV_HEADS, DIM, BUFFER = 4, 2, 8, 2000
CASES = {
    "decodes": ([1, 1, 1], [1, 40, 129], 3),
    "chunks": ([1, 7, 128, 129, 300], [1, 7, 200, 129, 555], 0),
    "both": ([1, 1, 256, 33], [513, 64, 256, 400], 2),
}
"""New tokens of each item, its KV tokens, how many of them are decodes."""


class Case:
    """A hybrid batch with random numbers in it, every extent with a gap behind."""

    def __init__(self, new: list[int], used: list[int], decodes: int) -> None:
        """Draw queries, new KV and what is in the buffers."""
        draw = torch.Generator().manual_seed(0)
        self.new, self.lengths, self.decodes = new, used, decodes
        starts = np.cumsum([3, *[length + 5 for length in used]])
        edges = np.cumsum([0, *new])
        places = [s + length - n + np.arange(n) for s, length, n in zip(starts, used, new, strict=False)]
        self.write = torch.tensor(np.concatenate(places))
        self.cu_q, self.start, self.used = (torch.tensor(x, dtype=torch.int32) for x in (edges, starts, used))
        self.q, self.k, self.v = (torch.randn(sum(new), h, DIM, generator=draw) for h in (HEADS, KV_HEADS, KV_HEADS))
        self.caches = [torch.randn(BUFFER, KV_HEADS, DIM, generator=draw) for _ in range(2)]

    def layout(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, buffers and where the items lie: arguments of both kinds of attention."""
        return self.q, self.caches[0], self.caches[1], self.cu_q, self.start, self.used

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


@pytest.mark.parametrize("name", CASES)
def test_tiles_of_queries_attend_as_the_definition_says(name: str) -> None:
    case = Case(*CASES[name])
    q, k_cache, v_cache, *where = case.layout()
    limits = (case.decodes, max(case.new), max(case.lengths))
    found = attend(q, case.k, case.v, k_cache, v_cache, case.write, *where, *limits, DIM**-0.5)
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


@pytest.mark.parametrize("name", CASES)
def test_two_flash_launches_are_told_what_belongs_to_whom(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(*CASES[name])
    launches: list[tuple[int, bool]] = []

    def flash(*arguments: Any, **options: Any) -> tuple[torch.Tensor]:
        launches.append((arguments[5], arguments[8]))
        return flash_on_a_cpu(*arguments, **options)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    q, k_cache, v_cache, cu_q, start, used = case.layout()
    layout = Layout(case.write, cu_q, start, used, case.decodes, max(case.new), max(case.lengths))
    found = gpu_attention._flash(q, k_cache, v_cache, layout, DIM**-0.5)
    torch.testing.assert_close(found, reference(*case.layout(), DIM**-0.5))
    decodes, chunks = case.decodes > 0, case.decodes < len(case.new)
    assert launches == [(1, False)] * decodes + [(max(case.new), True)] * chunks
