"""WAIT: requests of one output length wait until a quota of them is there, then enter together."""

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
    request_memory: ClassVar[int] = cells_of(PLACED)
    row_memory: ClassVar[int] = CLASS_CELLS
    space: ClassVar[Space] = {"wait": (True, False), "timeout_s": (0.1, 0.3, 1.0), "variant": ("code", "paper")}

    def params(self, config: EngineConfig) -> np.ndarray:
        """Variant, flag and timeout, then the types."""
        types = parse_quotas(self.types, "policy 'wait': types")
        stages = [bound + 1.0 for bound, _ in types]
        return encode_quotas(self.variant == "code", self.wait, self.timeout_s, types, stages)


@inner
def _type_of(classes: Classes, output: float) -> int:
    """The first type whose bound is not below `output` tokens, else the last."""
    last = int(classes.rule.classes) - 1
    for c in range(last):
        if output <= classes.quota[c].bound:
            return c
    return last


@inner
def _place(view: View, classes: Classes) -> None:
    """Everybody who runs, and so many of the queue that every type has its quota."""
    row, missing = view.row[0], int(classes.rule.classes)
    for j in range(row.num_running):
        i = view.running[j]
        place(classes, i, _type_of(classes, view.request[i].prediction), False)
    for j in range(row.num_waiting):
        if missing == 0:
            break
        i = view.queue[j]
        c = _type_of(classes, view.request[i].prediction)
        place(classes, i, c, True)
        missing -= classes.row[c].at_entry == classes.quota[c].enter


@kernel_of(WAIT)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    classes = Classes(rule_of(memory.params), quotas_of(memory.params), rows_of(memory.row), placed_in(memory.request))
    empty_classes(classes)
    rule, any_ready = classes.rule, False
    _place(view, classes)
    for c in range(int(rule.classes)):
        classes.row[c].is_open = has_quota(classes, c) or not rule.waits
        any_ready = any_ready or classes.row[c].is_open > 0
    if rule.is_code and any_ready:
        for c in range(int(rule.classes)):
            classes.row[c].is_open = 1
    open_late(view, classes)
    serve_open(view, plan, classes, -1)
