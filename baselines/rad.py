"""RAD, reconstructed: prefill mode and decode mode in turn, batches as wide as GeMM tiles (arXiv 2508.01002)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from baselines._fill import (
    FCFS,
    FILL_REQUEST_MEMORY,
    TAKEN,
    evict_into,
    fits_decode,
    is_decode,
    next_waiting,
    schedule_decode,
    take,
)
from engine.compiled.jit import inner
from engine.config import EngineConfig
from engine.server.kv import blocks_for
from engine.server.plan import drop, schedule
from engine.server.policy import HotKernel, Kernel, Policy, Space, check_parameters, require
from engine.server.state import Memory, Plan, View

PREFILLS, CHUNK, DECODE_BATCH, TILE, FULL_DRAIN, PACK_TAIL, RESERVE_OUTPUT = range(7)

PREFILLING, LEFT, NEXT, RAD_ROW_MEMORY = 0, 1, 2, 3
"""Cells of the row memory: in prefill mode, requests that this mode may still admit, where round robin goes on."""


@inner
def _reservation(row: Any, r: Any, output: int) -> int:
    """KV blocks for the prompt and `output` tokens, or for the prompt alone if the device could never hold more."""
    most = row.num_blocks - max(row.watermark_blocks, row.decode_needs_free_block)
    wanted = min(blocks_for(min(r.prompt + output, row.max_model_len), row.block_size), most)
    return max(wanted, blocks_for(r.prompt, row.block_size))


@inner
def _prefill(view: View, memory: Memory, plan: Plan) -> bool:
    """One chunk of the started prompt, else of the next ones in arrival order; False if none can run."""
    row, p = view.row[0], memory.params
    room = min(int(p[CHUNK]), row.max_batched_tokens)
    free, active, taken = row.free_blocks, row.num_running, 0
    for j in range(row.num_running if row.num_prefilling > 0 else 0):
        r = view.request[view.running[j]]
        if not is_decode(r) and room > 0:
            n = min(r.prompt - r.prefilled, room)
            schedule(plan, view.running[j], n)
            room = room - n if p[PACK_TAIL] else 0
    while room > 0 and memory.row[LEFT] > 0:
        i = next_waiting(view, memory, FCFS, 0, taken)
        if i < 0:
            break
        r = view.request[i]
        taken += 1
        if (
            r.prompt > row.max_model_len
            or blocks_for(r.prompt, row.block_size) + row.decode_needs_free_block > row.num_blocks
        ):
            drop(plan, i)
            continue
        need = _reservation(row, r, int(p[RESERVE_OUTPUT]))
        fits = free - need >= row.watermark_blocks or (active == 0 and free >= need)
        if not fits or active >= row.max_num_seqs:
            memory.row[LEFT] = 0
            break
        n = min(r.prompt, room)
        schedule(plan, i, n, need)
        room = room - n if p[PACK_TAIL] else 0
        free -= need
        active += 1
        memory.row[LEFT] -= 1
    return bool(plan.size[0] > 0)


@inner
def _evict_youngest(view: View, memory: Memory, plan: Plan, victims: int) -> int:
    """Evict the youngest request that this plan has not named yet; returns the KV blocks that come free."""
    j = view.row[0].num_running - 1
    while memory.request[view.running[j], TAKEN] == view.row[0].iterations + 1:
        j -= 1
    take(view, memory, view.running[j])
    return evict_into(plan, memory, view, view.running[j], victims)


@inner
def _decode(view: View, memory: Memory, plan: Plan, batch: int) -> None:
    """`batch` decodes (all, if fewer), round robin; evicts only where an output outgrew every reservation."""
    row, named = view.row[0], view.row[0].iterations + 1
    free, done, victims, first = row.free_blocks, 0, 0, 0
    while first < row.num_running and view.running[first] < memory.row[NEXT]:
        first += 1
    for k in range(row.num_running):
        i = view.running[(first + k) % row.num_running]
        r = view.request[i]
        while memory.request[i, TAKEN] != named and not fits_decode(row, r, free):
            free += _evict_youngest(view, memory, plan, victims)
            victims += 1
        if memory.request[i, TAKEN] != named:
            free -= schedule_decode(plan, row, i, r)
            take(view, memory, i)
            memory.row[NEXT] = i + 1
            done += 1
            if done == batch:
                break


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, p = view.row[0], memory.params
    batch = min(int(p[DECODE_BATCH]), row.max_batched_tokens)
    enough = 1 if p[FULL_DRAIN] else batch
    for _ in range(2):  # where a prefill mode ends short of a full batch, the next one follows at once
        if not memory.row[PREFILLING] and row.num_running < enough:
            memory.row[PREFILLING] = 1
            memory.row[LEFT] = min(int(p[PREFILLS]), row.num_waiting)
        if memory.row[PREFILLING] and _prefill(view, memory, plan):
            return
        memory.row[PREFILLING] = 0
    _decode(view, memory, plan, batch)


@dataclass(frozen=True)
class RAD(Policy):
    """Prefill mode: chunks of up to N new prompts, no decodes. Decode mode: batches of exactly decode_batch tokens.

    RECONSTRUCTED from third-party notes: the authors published no code of RAD, and the drain and idle rules are
    ours. With drain=carry, decode mode ends when fewer than decode_batch decodes are left, and while no prompt can
    be admitted these few run in a partial batch; with drain=full, it ends when none is left. Throughput-optimal
    where an iteration costs its GeMM tiles and nothing else; blind to deadlines. Admission reserves KV for the prompt
    and reserve_output tokens (what fits the model and the device, if less), so only outputs beyond that can run out
    of blocks: then the youngest request is evicted.
    """

    prefills: int = 64
    """N: requests that one prefill mode admits at most."""
    chunk: int = 512
    """Prompt tokens per iteration; best a common multiple of the tile sides."""
    decode_batch: int = 0
    """Decodes per iteration. 0: the largest multiple of tile within max_num_seqs (all of them below one tile), which
    has the least time per token wherever an iteration has fixed costs; a purely tile-proportional cost wants tile."""
    tile: int = 128
    """Columns of a GeMM tile in tokens, for decode_batch=0."""
    drain: str = "carry"
    """When decode mode ends: carry (fewer than decode_batch left) or full (none left)."""
    pack_tail: bool = False
    """Fill the last chunk of a prompt with the next prompt, instead of leaving it short."""
    reserve_output: int = 1024
    """Output tokens for which admission reserves KV."""

    name: ClassVar[str] = "rad"
    paper: ClassVar[str] = "RAD, SIGMETRICS 2026, arXiv 2508.01002"
    knows: ClassVar[str] = "prompt length"
    eviction: ClassVar[str] = "none (KV reserved); beyond the reservation the youngest, recompute"
    evidence: ClassVar[str] = "reconstructed from third-party notes, no public code"
    request_memory: ClassVar[int] = FILL_REQUEST_MEMORY
    row_memory: ClassVar[int] = RAD_ROW_MEMORY
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {
        "prefills": (2, 4, 8, 16, 64),
        "chunk": (256, 512, 1024),
        "reserve_output": (256, 512, 1024),
    }

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self)
        for name in ("prefills", "chunk", "tile"):
            require(getattr(self, name) >= 1, self, name, "a whole number >= 1")
        require(self.decode_batch >= 0, self, "decode_batch", "requests >= 0")
        require(self.reserve_output >= 0, self, "reserve_output", "tokens >= 0")
        require(self.drain in ("carry", "full"), self, "drain", "carry or full")

    def encode(self, name: str, value: Any) -> float:
        """The drain rule as the flag that the kernel tests."""
        return float(value == "full" if name == "drain" else value)

    def params(self, config: EngineConfig) -> np.ndarray:
        """The parameters with the decode batch settled for this server."""
        params = super().params(config)
        if self.decode_batch == 0:
            most = config.max_num_seqs
            params[DECODE_BATCH] = most - most % self.tile if most >= self.tile else most
        return params
