"""Nested WAIT: without knowing output lengths, requests wait for a quota again at each boundary of generated tokens."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.families.quota import (
    CODE,
    ENTERS,
    FIRST_CLASS,
    NUM_CLASSES,
    OPEN,
    QUOTA_CELLS,
    QUOTA_REQUEST_MEMORY,
    QUOTA_ROW_MEMORY,
    WAITING_AT,
    WAITS,
    Quotas,
    encode_quotas,
    forget_classes,
    has_quota,
    open_late,
    parse_quotas,
    put,
    serve_open,
)
from baselines.parameters import Seconds, Variant
from engine.compiled.jit import inner
from engine.config import EngineConfig
from engine.server.policy import HotKernel, Kernel, Policy, Space
from engine.server.state import Memory, Plan, View


@inner
def _segment(memory: Memory, generated: int) -> int:
    """Segment of a request that is to generate token number `generated` + 1."""
    p = memory.params
    last = int(p[NUM_CLASSES]) - 1
    for c in range(last):
        if generated < p[FIRST_CLASS + 3 * c]:
            return c
    return last


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, p = view.row[0], memory.params
    forget_classes(memory)
    memory.row[WAITING_AT] = row.num_waiting
    for k in range(row.num_running):
        i = view.running[k]
        r = view.request[i]
        c = _segment(memory, r.generated)
        put(memory, i, c, c > 0 and r.prefilled == r.prompt and r.generated == p[FIRST_CLASS + 3 * (c - 1)])
    prefix = True
    for c in range(int(p[NUM_CLASSES])):
        enough = has_quota(memory, c) or not p[WAITS] or (c == 0 and p[CODE] > 0.0)
        prefix = prefix and enough
        memory.row[QUOTA_CELLS * c + OPEN] = 1.0 if prefix or p[CODE] > 0.0 else 0.0
        if not prefix:
            memory.row[QUOTA_CELLS * c + ENTERS] = 0.0
    open_late(view, memory)
    serve_open(view, memory, plan, 0)


@dataclass(frozen=True)
class NestedWAIT(Policy):
    """Segments of generated tokens, each with a quota at its entry; the longest run of first segments with quotas runs.

    A request enters the first segment; at a boundary it is done or waits, with its KV, for the quota of the next one.
    Variants: ``paper``, where the decodes of a segment without quota wait too, and ``code`` (Luoxiaogan/vidur_or),
    where only its entry waits (our reading), the first one needs no quota, and a segment holds at most its quota in
    each stage. ``llmsched fluid`` computes quotas (the default: for its default workload). KV check and timeout as in
    WAIT; a request that loses its KV starts again in the first segment.
    """

    segments: Quotas = "64:1;128:1;256:1;inf:1"
    """Segments as tokens:requests, joined by ";": last token of the segment, and how many enter at a time."""
    variant: Variant = "code"
    """paper or code."""
    wait: bool = True
    """Wait for quotas; without, they only limit how many enter."""
    timeout_s: Seconds = 1.0
    """Seconds after which a segment that was not served runs with what it has (not in the paper)."""

    name: ClassVar[str] = "nested_wait"
    paper: ClassVar[str] = "Nested WAIT, arXiv 2504.11320"
    knows: ClassVar[str] = "distribution of output lengths, in its quotas"
    eviction: ClassVar[str] = "youngest running request under memory pressure, recompute"
    evidence: ClassVar[str] = "public code of an author and notes to the paper; KV check and timeout are ours"
    request_memory: ClassVar[int] = QUOTA_REQUEST_MEMORY
    row_memory: ClassVar[int] = QUOTA_ROW_MEMORY
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {"wait": (True, False), "timeout_s": (0.1, 0.3, 1.0), "variant": ("code", "paper")}

    def params(self, config: EngineConfig) -> np.ndarray:
        """Variant, flag and timeout, then the segments."""
        segments = parse_quotas(self.segments, "policy 'nested_wait': segments")
        bounds = [0.0, *(bound for bound, _ in segments)]
        stages = [b - a for a, b in itertools.pairwise(bounds)]
        cells = encode_quotas(segments, stages)
        return np.array([self.variant == "code", self.wait, self.timeout_s, *cells], np.float64)
