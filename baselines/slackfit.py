"""slackfit: shortest remaining prompt first, batches cut to a predicted duration, decodes held while they have slack.

Our own baseline. It adapts to its device: the durations that its latency profile predicts are corrected by those seen.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from baselines._fill import (
    FILL_REQUEST_MEMORY,
    FILL_ROW_MEMORY,
    SPF,
    TAKEN,
    fits_decode,
    is_decode,
    next_waiting,
    schedule_decode,
    take,
)
from baselines._slack import take_urgent
from engine._jit import inner
from engine.config import EngineConfig
from engine.kv import blocks_to_admit, tokens_left
from engine.latency import load_profile
from engine.policy import HotKernel, Kernel, Policy, require, schedule
from engine.state import Memory, Plan, View

STRICT_LIMIT, RELAXED_LIMIT, LONG_LIMIT, SLACK, MEMORY_LIMIT, PROFILE = range(6)
OVERHEAD, FLOOR, PER_TOKEN, PER_PAIR, PER_CONTEXT = range(PROFILE, PROFILE + 5)
"""The latency profile takes the place of its name at the end of the parameters."""
SCALE, PREDICTED, SEEN = range(FILL_ROW_MEMORY, FILL_ROW_MEMORY + 3)
"""Cells of the row memory: measured / predicted duration (running mean), prediction for the last batch, its number."""

FORGET = 0.05
"""Weight of the last batch in the running mean."""
LEAST_CHUNK = 64
"""Tokens of a prompt that run even if the batch is full already, so that prompts always go on."""


@inner
def _learn_scale(view: View, memory: Memory) -> float:
    """Compare the last batch with its prediction; returns the device's seconds per predicted second."""
    row, m = view.row[0], memory.row
    if m[SCALE] == 0.0:
        m[SCALE] = 1.0
    if m[PREDICTED] > 0.0 and row.iterations == m[SEEN] + 1.0:
        m[SCALE] += FORGET * (row.last_duration / m[PREDICTED] - m[SCALE])
    m[SEEN], m[PREDICTED] = row.iterations, 0.0
    return m[SCALE]


@inner
def _seconds(p: Any, tokens: int, attention: float) -> float:
    return p[OVERHEAD] + max(p[FLOOR], p[PER_TOKEN] * tokens) + attention


@inner
def _largest_chunk(p: Any, tokens: int, attention: float, done: int, limit: float) -> int:
    """Prompt tokens that fit a batch of so many tokens and attention seconds, behind `done` tokens of their request."""
    over = p[OVERHEAD] + attention + p[PER_TOKEN] * tokens - limit
    if over >= 0.0 or p[OVERHEAD] + attention + p[FLOOR] > limit:
        return 0
    a, b = 0.5 * p[PER_PAIR], p[PER_TOKEN] + p[PER_PAIR] * (done + 0.5)
    return int(-2.0 * over / (b + np.sqrt(b * b - 4.0 * a * over)))


@inner
def _shortest_started(view: View, memory: Memory) -> int:
    """The started prompt with the fewest tokens left that this plan has not taken; -1 if there is none."""
    row = view.row[0]
    best, least = -1, 1 << 30
    if row.num_prefilling > 0:
        for j in range(row.num_running):
            i = view.running[j]
            r = view.request[i]
            left = r.prompt - r.prefilled
            if left < least and not is_decode(r) and memory.request[i, TAKEN] != row.iterations + 1:
                best, least = i, left
    return best


@inner
def _take_prompts(
    view: View, memory: Memory, plan: Plan, limit: float, tokens: int, attention: float, free: int, victims: int
) -> tuple[int, float, int]:
    """Chunks by shortest remaining prompt while predicted time is left; returns (tokens, attention, free blocks)."""
    row, p = view.row[0], memory.params
    stamp, taken, blocked, first = row.iterations + 1, 0, False, True
    active = row.num_running - victims
    while row.num_waiting + row.num_prefilling > 0:
        started = _shortest_started(view, memory)
        best = started
        if not blocked:
            i = next_waiting(view, memory, SPF, victims, taken)
            if i >= 0 and memory.request[i, TAKEN] != stamp:
                if (
                    started < 0
                    or view.request[i].prompt < view.request[started].prompt - view.request[started].prefilled
                ):
                    best = i
        if best < 0:
            break
        r = view.request[best]
        done, left = (r.prefilled, tokens_left(r)) if best == started else (0, r.prompt)
        chunk = _largest_chunk(p, tokens, attention, done, limit)
        if chunk < left:
            chunk = min(chunk, max(0, _largest_chunk(p, tokens, attention, done, p[LONG_LIMIT] * limit)))
        chunk = min(left, row.max_batched_tokens - tokens, max(chunk, LEAST_CHUNK if first else 0))
        if chunk <= 0:
            break
        if best != started:
            need = blocks_to_admit(r, row.block_size)
            if free - need < row.watermark_blocks or active >= row.max_num_seqs:
                blocked = True
                continue
            free -= need
            active += 1
            taken += 1
        schedule(plan, best, chunk)
        take(view, memory, best)
        tokens += chunk
        attention += p[PER_PAIR] * chunk * (done + 0.5 * (chunk + 1))
        first = False
        if chunk < left:
            break
    return tokens, attention, free


@inner
def _take_others(
    view: View, memory: Memory, plan: Plan, limit: float, tokens: int, attention: float, free: int
) -> tuple[int, float]:
    """Decodes that could wait, oldest first, while predicted time is left; returns (tokens, attention)."""
    row, p = view.row[0], memory.params
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if is_decode(r) and memory.request[i, TAKEN] != row.iterations + 1 and fits_decode(row, r, free):
            more = p[PER_CONTEXT] * r.length
            if _seconds(p, tokens + 1, attention + more) > limit:
                break
            free -= schedule_decode(plan, row, i, r)
            take(view, memory, i)
            tokens += 1
            attention += more
    return tokens, attention


@inner
def _context(view: View, memory: Memory) -> float:
    """KV tokens that the decodes taken so far read, seconds."""
    row, total = view.row[0], 0
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if is_decode(r) and memory.request[i, TAKEN] == row.iterations + 1:
            total += r.length
    return memory.params[PER_CONTEXT] * total


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, p = view.row[0], memory.params
    scale = _learn_scale(view, memory)
    strict = False
    for j in range(row.num_running):
        r = view.request[view.running[j]]
        strict = strict or (r.strict > 0 and is_decode(r))
    limit = p[STRICT_LIMIT] if strict else p[RELAXED_LIMIT]
    prompts = row.num_waiting + row.num_prefilling > 0
    full = row.num_blocks - row.free_blocks >= p[MEMORY_LIMIT] * row.num_blocks
    slack = p[SLACK] * limit if prompts and not full else np.inf
    tokens, free, victims = take_urgent(view, memory, plan, slack, row.free_blocks, 0)
    attention = _context(view, memory)
    if prompts:
        tokens, attention, free = _take_prompts(view, memory, plan, limit / scale, tokens, attention, free, victims)
        if victims == 0:
            tokens, attention = _take_others(view, memory, plan, limit / scale, tokens, attention, free)
    if plan.size[0] == victims:
        tokens, free, victims = take_urgent(view, memory, plan, np.inf, free, victims)
        attention = _context(view, memory)
    memory.row[PREDICTED] = _seconds(p, tokens, attention)


@cache
def _profile(name: str) -> tuple[float, ...]:
    model = load_profile(name)
    if not model.table:
        return model.overhead, model.floor, model.per_token, model.per_pair, model.per_context
    (_, floor), (most, seconds) = model.table[0], model.table[-1]
    return model.overhead, floor, seconds / most, model.per_pair, model.per_context


@dataclass(frozen=True)
class Slackfit(Policy):
    """Fill each batch up to a predicted duration: urgent decodes, prompts by shortest remaining, then other decodes.

    The predicted duration is corrected by what the last batches took, so the profile needs only the right shape.
    """

    strict_limit: float = 0.08
    """Seconds of a batch while a user of the strict tier decodes."""
    relaxed_limit: float = 0.1
    """Seconds of a batch otherwise."""
    long_limit: float = 1.0
    """Share of the limit that a prompt fills which does not end in the batch: a newcomer waits less for its end."""
    slack: float = 3.0
    """A decode must run if less than this many batch limits are left until its deadline."""
    memory_limit: float = 0.8
    """Share of the KV blocks in use from which every decode runs."""
    profile: str = "rtx6000ada-mistral-7b"
    """Latency profile that predicts durations."""

    name: ClassVar[str] = "slackfit"
    paper: ClassVar[str] = "ours"
    knows: ClassVar[str] = "prompt length, tier, batch times, a latency profile"
    eviction: ClassVar[str] = "youngest, when a decode finds no block"
    evidence: ClassVar[str] = "ours"
    request_memory: ClassVar[int] = FILL_REQUEST_MEMORY
    row_memory: ClassVar[int] = FILL_ROW_MEMORY + 3
    kernel: ClassVar[Kernel | None] = _plan

    def __post_init__(self) -> None:
        """Check the parameters."""
        for name in ("strict_limit", "relaxed_limit"):
            require(0.0 < getattr(self, name) < 1e6, self, name, "seconds > 0")
        require(0.0 <= self.long_limit <= 1.0, self, "long_limit", "a share from 0 to 1")
        require(self.slack >= 0.0, self, "slack", "a number >= 0")
        require(0.0 <= self.memory_limit, self, "memory_limit", "a share >= 0")
        _profile(self.profile)

    def params(self, config: EngineConfig) -> np.ndarray:
        """The numbers, then the profile: overhead, floor, per token, per pair, per KV token of context (s)."""
        numbers = (self.strict_limit, self.relaxed_limit, self.long_limit, self.slack, self.memory_limit)
        return np.array([*numbers, *_profile(self.profile)], np.float64)
