"""Nested WAIT: without knowing output lengths, requests wait for a quota again at each boundary of generated tokens."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.families.quota import (
    CLASS_CELLS,
    PLACED,
    Classes,
    Quotas,
    empty_classes,
    encode_quotas,
    has_quota,
    open_late,
    parse_quotas,
    place,
    placed_in,
    quotas_of,
    rows_of,
    rule_of,
    serve_open,
)
from baselines.parameters import Seconds, Variant
from engine.compiled.jit import inner
from engine.compiled.records import cells_of
from engine.config import EngineConfig
from engine.server.policy import Policy, Space, kernel_of
from engine.server.state import Memory, Plan, View


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
    request_memory: ClassVar[int] = cells_of(PLACED)
    row_memory: ClassVar[int] = CLASS_CELLS
    space: ClassVar[Space] = {"wait": (True, False), "timeout_s": (0.1, 0.3, 1.0), "variant": ("code", "paper")}

    def params(self, config: EngineConfig) -> np.ndarray:
        """Variant, flag and timeout, then the segments."""
        segments = parse_quotas(self.segments, "policy 'nested_wait': segments")
        bounds = [0.0, *(bound for bound, _ in segments)]
        stages = [b - a for a, b in itertools.pairwise(bounds)]
        return encode_quotas(self.variant == "code", self.wait, self.timeout_s, segments, stages)


@inner
def _segment(classes: Classes, generated: int) -> int:
    """Segment of a request that is to generate token number `generated` + 1."""
    last = int(classes.rule.classes) - 1
    for c in range(last):
        if generated < classes.quota[c].bound:
            return c
    return last


@inner
def _place(view: View, classes: Classes) -> None:
    """The queue at the entry of the first segment, who runs in its own, or at the entry of that."""
    row = view.row[0]
    classes.row[0].at_entry = row.num_waiting
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        c = _segment(classes, r.generated)
        at_entry = c > 0 and r.prefilled == r.prompt and r.generated == classes.quota[c - 1].bound
        place(classes, i, c, at_entry)


@kernel_of(NestedWAIT)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    classes = Classes(rule_of(memory.params), quotas_of(memory.params), rows_of(memory.row), placed_in(memory.request))
    empty_classes(classes)
    rule, prefix = classes.rule, True
    _place(view, classes)
    for c in range(int(rule.classes)):
        enough = has_quota(classes, c) or not rule.waits or (c == 0 and rule.is_code > 0.0)
        prefix = prefix and enough
        classes.row[c].is_open = prefix or rule.is_code > 0.0
        if not prefix:
            classes.row[c].may_enter = 0.0
    open_late(view, classes)
    serve_open(view, plan, classes, 0)
