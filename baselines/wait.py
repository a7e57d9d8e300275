"""WAIT: requests of one output length wait until a quota of them is there, then enter together."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from baselines.families.quota import CODE as CODE_VARIANT
from baselines.families.quota import (
    FIRST_CLASS,
    NUM_CLASSES,
    OPEN,
    QUOTA_CELLS,
    QUOTA_REQUEST_MEMORY,
    QUOTA_ROW_MEMORY,
    WAITING_AT,
    WAITS,
    Quotas,
    class_of,
    encode_quotas,
    forget_classes,
    has_quota,
    open_late,
    parse_quotas,
    put,
    serve_open,
)
from baselines.parameters import Seconds, Variant
from engine.config import EngineConfig
from engine.server.policy import HotKernel, Kernel, Policy, Space
from engine.server.state import Memory, Plan, View


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, p = view.row[0], memory.params
    forget_classes(memory)
    for k in range(row.num_running):
        i = view.running[k]
        put(memory, i, class_of(memory, view.request[i].prediction), False)
    missing = int(p[NUM_CLASSES])
    for k in range(row.num_waiting):
        if missing == 0:
            break
        i = view.queue[k]
        c = class_of(memory, view.request[i].prediction)
        put(memory, i, c, True)
        if memory.row[QUOTA_CELLS * c + WAITING_AT] == p[FIRST_CLASS + 3 * c + 1]:
            missing -= 1
    any_ready = False
    for c in range(int(p[NUM_CLASSES])):
        ready = has_quota(memory, c) or not p[WAITS]
        any_ready = any_ready or ready
        memory.row[QUOTA_CELLS * c + OPEN] = 1.0 if ready else 0.0
    if p[CODE_VARIANT] and any_ready:
        for c in range(int(p[NUM_CLASSES])):
            memory.row[QUOTA_CELLS * c + OPEN] = 1.0
    open_late(view, memory)
    serve_open(view, memory, plan, -1)


@dataclass(frozen=True)
class WAIT(Policy):
    """Types by output length; a type runs, decodes included, when its quota of new requests waits, and takes them in.

    Two variants: ``paper``, where each type waits for itself, and ``code`` (Luoxiaogan/vidur_or, the one with the
    published results), where one type that is ready starts a batch in which all decodes run, and no type holds more
    requests than its quota in each stage. ``llmsched fluid`` computes quotas (the default: for its default workload).
    Neither source looks at the free KV or ends the waiting of the last requests; here newcomers need KV, and a timeout
    opens a type.
    """

    types: Quotas = "64:1;128:1;256:1;inf:1"
    """Types as tokens:requests, joined by ";": outputs up to so many tokens, and how many enter at a time."""
    variant: Variant = "code"
    """paper or code."""
    wait: bool = True
    """Wait for quotas; without, they only limit how many enter."""
    timeout_s: Seconds = 1.0
    """Seconds after which a type that was not served runs with what it has (not in the paper)."""

    name: ClassVar[str] = "wait"
    paper: ClassVar[str] = "WAIT, arXiv 2504.11320"
    knows: ClassVar[str] = "output length"
    prediction: ClassVar[str] = "oracle"
    eviction: ClassVar[str] = "youngest running request under memory pressure, recompute"
    evidence: ClassVar[str] = "public code of an author and notes to the paper; KV check and timeout are ours"
    request_memory: ClassVar[int] = QUOTA_REQUEST_MEMORY
    row_memory: ClassVar[int] = QUOTA_ROW_MEMORY
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {"wait": (True, False), "timeout_s": (0.1, 0.3, 1.0), "variant": ("code", "paper")}

    def params(self, config: EngineConfig) -> np.ndarray:
        """Variant, flag and timeout, then the types."""
        types = parse_quotas(self.types, "policy 'wait': types")
        cells = encode_quotas(types, [bound + 1.0 for bound, _ in types])
        return np.array([self.variant == "code", self.wait, self.timeout_s, *cells], np.float64)
