"""One forward of a model over a hybrid batch: index arrays in one, logits, CUDA graphs of decode-only batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from engine.device.real.attention import PAGE, Layout

GRAPH_SIZES = (1, 2, 4, *range(8, 129, 8))
"""Decode-only batches are padded to these sizes, each a CUDA graph."""

WARM_UP: tuple[tuple[tuple[tuple[int, int], ...], tuple[int, ...]], ...] = (
    *(((), (40,) * size) for size in (*GRAPH_SIZES, GRAPH_SIZES[-1] + 1)),
    *((((100, 0),) * chunks, (40,) * decodes) for chunks in (1, 2) for decodes in (0, 1, 2)),
)
"""Prompt chunks and decodes of batches after which no other one is compiled or captured. Sizes of 0 and 1 are compiled
apart, and so would be sizes that happen to be equal: tokens, items, pages of an item."""

Item = tuple[int, int, int]
"""One request's part of a batch: start of its extent, KV tokens before, new tokens."""


def compile_layers(model: Any, backend: str = "inductor") -> None:
    """Compile each layer for any batch; the layers share the compiled code."""
    for layer in model.model.layers:
        layer.compile(dynamic=True, fullgraph=True, backend=backend)


def logits_of(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, layout: Layout, keep: torch.Tensor
) -> torch.Tensor:
    """Logits of the tokens of a batch at the places `keep`, [kept, vocabulary]."""
    out = model(input_ids=ids[None], position_ids=positions[None], use_cache=False, logits_to_keep=keep, layout=layout)
    return out.logits[0]


def pack(ids: np.ndarray, items: Sequence[Item], keep: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """All index arrays of a batch in one, so that one copy takes them to the device; (int32[...], (max_q, max_k))."""
    start, done, n = np.array(items, np.int32).T
    first = np.concatenate([[0], np.cumsum(n)])
    positions = np.arange(first[-1]) - np.repeat(first[:-1], n) + np.repeat(done, n)
    parts = (ids, positions, positions + np.repeat(start, n), first, start, [0], done + n, keep)
    return np.concatenate(parts).astype(np.int32), (int(n.max()), int((done + n).max()))


def unpack(
    packed: torch.Tensor, tokens: int, items: int, decodes: int, max_q: int, max_k: int
) -> tuple[torch.Tensor, torch.Tensor, Layout, torch.Tensor]:
    """Token ids, positions, layout and tokens whose logits are kept, from what `pack` made."""
    sizes = [tokens, tokens, tokens, items + 1, items + 1, items]
    ids, positions, write, cu_q, start, used, keep = torch.split(packed, [*sizes, len(packed) - sum(sizes)])
    # One more than needed: torch would compile once more for a width of 1.
    within = torch.arange(1 + -(-max_k // PAGE), dtype=torch.int32, device=packed.device)
    pages = torch.div(start[:-1, None], PAGE, rounding_mode="floor") + within
    return ids, positions, Layout(write.long(), cu_q, start, used, pages, decodes, max_q, max_k), keep


def to_device(packed: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on the device; to a GPU without waiting for what runs there."""
    tensor = torch.from_numpy(packed)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class DecodeGraph:
    """A CUDA graph of one decode-only batch size; smaller batches are padded with rows that touch only scratch KV."""

    def __init__(self, model: Any, size: int, scratch: int) -> None:
        self.size, self.scratch = size, scratch
        limit = min(scratch, int(model.config.max_position_embeddings))
        packed, _ = pack(np.zeros(size, np.int64), [(scratch, 0, 1)] * size, np.arange(size))
        self._host = torch.from_numpy(packed).pin_memory()
        self._device = self._host.cuda()

        def once() -> torch.Tensor:
            return logits_of(model, *unpack(self._device, size, size, size, 1, limit))

        side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                once()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = once()

    def run(self, ids: np.ndarray, items: Sequence[Item]) -> torch.Tensor:
        """Logits of the batch, [items, vocabulary]."""
        spare = self.size - len(items)
        padded = [*items, *[(self.scratch, 0, 1)] * spare]
        packed, _ = pack(np.concatenate([ids, np.zeros(spare, np.int64)]), padded, np.arange(self.size))
        self._host.numpy()[...] = packed
        self._device.copy_(self._host, non_blocking=True)
        self._graph.replay()
        return self._logits[: len(items)]
