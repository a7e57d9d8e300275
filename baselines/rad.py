"""RAD, reconstructed: prefill mode and decode mode in turn, batches as wide as GeMM tiles (arXiv 2508.01002).

A public formalisation of the paper states its Algorithm 1: github.com/servingQ/serQ, docs/use-cases/bari.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from baselines.parameters import Requests, RequestsFrom0, Tokens, TokensFrom0
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record
from engine.config import EngineConfig
from engine.server.kv import blocks_for
from engine.server.moves import chunk, decode, enter, fits_decode, is_decode, take_kv
from engine.server.plan import drop, is_named, name
from engine.server.policy import Policy, Space, kernel_of
from engine.server.queue import first_waiting
from engine.server.state import Memory, Plan, View

DRAINS = "carry", "full", "cycle"
CARRY, FULL, CYCLE = range(3)
"""When the decodes of a cycle must be finished."""

MODE = np.dtype(
    [
        ("prefills", "i8"),  # 1 in prefill mode, 0 in decode mode
        ("may_enter", "i8"),  # requests that this prefill mode (with drain=cycle: this cycle) may still admit
        ("turn", "i8"),  # request from which round robin goes on
    ],
    align=True,
)
"""What RAD remembers of the server."""


@dataclass(frozen=True)
class RAD(Policy):
    """Decode mode once decode_batch requests decode or no prompt is left; else prefill mode, a chunk of the oldest.

    RECONSTRUCTED: the authors published no code of RAD. Its rule is Algorithm 1 as a public formalisation states it
    (servingQ/serQ, docs/use-cases/bari.md) for N = infinity, which is the default; what that leaves open is ours.
    Throughput-optimal where an iteration costs its GeMM tiles and nothing else; blind to deadlines. `rad:paper` has
    chunks and decode batches of one tile, as the paper; the default ones are for devices with fixed costs.
    Admission reserves KV for the prompt and reserve_output tokens (what fits the model and the device, if less), so
    only outputs beyond that can run out of blocks: then the youngest request is evicted.
    """

    prefills: Requests = 1
    """N: requests that a prefill mode (with drain=cycle: a cycle) admits at most. With drain=carry it may admit as many
    as decode_batch lacks, and a larger N only lets more requests than that be present."""
    chunk: Tokens = 512
    """Prompt tokens per iteration; best a common multiple of the tile sides."""
    decode_batch: RequestsFrom0 = 0
    """Decodes per iteration. 0: the largest multiple of tile within max_num_seqs (all of them below one tile), which
    has the least time per token wherever an iteration has fixed costs; a purely tile-proportional cost wants tile."""
    tile: Tokens = 128
    """Columns of a GeMM tile in tokens, for decode_batch=0."""
    drain: Literal["carry", "full", "cycle"] = "carry"
    """carry: the paper's N = infinity, nobody waits for others to finish. cycle: the paper's finite N; the two modes
    alternate until N requests have been admitted, then these finish before the next ones come. full: a prefill mode
    of N requests, then a decode mode until none is left."""
    pack_tail: bool = False
    """Fill the last chunk of a prompt with the next prompt, instead of leaving it short."""
    reserve_output: TokensFrom0 = 1024
    """Output tokens for which admission reserves KV."""

    name: ClassVar[str] = "rad"
    paper: ClassVar[str] = "RAD, SIGMETRICS 2026, arXiv 2508.01002"
    knows: ClassVar[str] = "prompt length"
    eviction: ClassVar[str] = "none (KV reserved); beyond the reservation the youngest, recompute"
    evidence: ClassVar[str] = "reconstructed, no public code; Algorithm 1 as servingQ/serQ states it"
    row_memory: ClassVar[int] = cells_of(MODE)
    named: ClassVar[Mapping[str, str]] = {"paper": "prefills=1,chunk=128,decode_batch=128,tile=128,drain=carry"}
    space: ClassVar[Space] = {"chunk": (256, 512, 1024), "reserve_output": (256, 512, 1024)}

    def encode(self, name: str, value: Any) -> float:
        """The drain rule as the number that the kernel compares."""
        return float(DRAINS.index(value) if name == "drain" else value)

    def params(self, config: EngineConfig) -> np.ndarray:
        """The parameters with the decode batch settled for this server."""
        params = super().params(config)
        if self.decode_batch == 0:
            most = config.max_num_seqs
            _params(params).decode_batch = most - most % self.tile if most >= self.tile else most
        return params


_params, _mode = record(params_of(RAD)), record(MODE)


@inner
def _reservation(row: np.record, r: np.record, output: int) -> int:
    """KV blocks for the prompt and `output` tokens, or for the prompt alone if the device could never hold more."""
    most = row.num_blocks - max(row.watermark_blocks, row.decode_needs_free_block)
    wanted = min(blocks_for(min(r.prompt + output, row.max_model_len), row.block_size), most)
    return max(wanted, blocks_for(r.prompt, row.block_size))


@inner
def _is_impossible(row: np.record, r: np.record) -> bool:
    """Whether a request is too long for the model or its KV for the device."""
    too_large = blocks_for(r.prompt, row.block_size) + row.decode_needs_free_block > row.num_blocks
    return bool(r.prompt > row.max_model_len or too_large)


@inner
def _room(row: np.record, draft: np.record, p: np.record) -> int:
    """Prompt tokens that the iteration has left: what the last prompt left short is filled only if asked for."""
    return min(int(p.chunk), row.max_batched_tokens) - draft.tokens if draft.tokens == 0 or p.pack_tail else 0


@inner
def _admit(view: View, plan: Plan, p: np.record, mode: np.record) -> None:
    """Prompts of waiting requests, in arrival order, while their reservations fit."""
    row, draft = view.row[0], plan.draft[0]
    while _room(row, draft, p) > 0 and mode.may_enter > 0:
        i = first_waiting(view, plan)
        if i < 0:
            break
        r = view.request[i]
        if _is_impossible(row, r):
            drop(plan, i)
            continue
        reserve = _reservation(row, r, int(p.reserve_output))
        fits = draft.free - reserve >= row.watermark_blocks or (draft.seats == 0 and draft.free >= reserve)
        if not fits or draft.seats >= row.max_num_seqs:
            break
        enter(view, plan, i, min(r.prompt, _room(row, draft, p)), reserve)
        mode.may_enter -= 1


@inner
def _prefill(view: View, plan: Plan, p: np.record, mode: np.record) -> bool:
    """One chunk of the started prompt, else of the next ones in arrival order; False if none can run."""
    row, draft = view.row[0], plan.draft[0]
    for j in range(row.num_running if row.num_prefilling > 0 else 0):
        i, room = view.running[j], _room(row, draft, p)
        if not is_decode(view.request[i]) and room > 0:
            chunk(view, plan, i, room)
    _admit(view, plan, p, mode)
    return bool(plan.size[0] > 0)


@inner
def _evict_youngest(view: View, plan: Plan) -> None:
    """Take the KV of the youngest request that this plan has not named yet."""
    j = view.row[0].num_running - 1
    while is_named(plan, view.running[j]):
        j -= 1
    name(plan, view.running[j])
    take_kv(view, plan, view.running[j])


@inner
def _decode(view: View, plan: Plan, mode: np.record, batch: int) -> None:
    """`batch` decodes (all, if fewer), round robin; evicts only where an output outgrew every reservation."""
    row, draft, first = view.row[0], plan.draft[0], 0
    while first < row.num_running and view.running[first] < mode.turn:
        first += 1
    for k in range(row.num_running):
        i = view.running[(first + k) % row.num_running]
        while not is_named(plan, i) and not fits_decode(view, plan, i):
            _evict_youngest(view, plan)
        if not is_named(plan, i):
            decode(view, plan, i)
            mode.turn = i + 1
            if draft.tokens == batch:
                break


@inner
def _modes(view: View, plan: Plan, p: np.record, mode: np.record, batch: int) -> None:
    """Prefill mode until N requests are in or a batch is present; decode mode until fewer are left (full: none)."""
    row, enough = view.row[0], 1 if p.drain == FULL else batch
    for _ in range(2):  # where a prefill mode ends short of a full batch, the next one follows at once
        if not mode.prefills and row.num_running < enough:
            most = max(int(p.prefills), enough - row.num_running)
            mode.prefills, mode.may_enter = 1, min(most, row.num_waiting)
        if mode.prefills and _prefill(view, plan, p, mode):
            return
        mode.prefills = 0
    _decode(view, plan, mode, batch)


@inner
def _cycle(view: View, plan: Plan, p: np.record, mode: np.record, batch: int) -> None:
    """A chunk while fewer than a batch decode and the cycle has prompts left, else decodes."""
    row = view.row[0]
    if row.num_running == 0 and mode.may_enter == 0:  # the last cycle has ended
        mode.may_enter = int(p.prefills)
    if row.num_running - row.num_prefilling >= batch or not _prefill(view, plan, p, mode):
        _decode(view, plan, mode, batch)


@kernel_of(RAD)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    p, mode = _params(memory.params), _mode(memory.row)
    batch = min(int(p.decode_batch), view.row[0].max_batched_tokens)
    if p.drain == CYCLE:
        _cycle(view, plan, p, mode, batch)
    else:
        _modes(view, plan, p, mode, batch)
