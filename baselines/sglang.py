"""SGLang: whole batches of prompts before decodes, its queue in one of several orders."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from baselines.families.sglang import (
    LINE,
    WAITER,
    Line,
    PrefillFirst,
    decode_all,
    line_rule,
    line_up,
    may_prefill,
    prefill,
    sort_line,
)
from engine.compiled.jit import inner
from engine.compiled.records import cells_of, params_of, record, records
from engine.server.policy import Space, kernel_of
from engine.server.state import Memory, Plan, View

FCFS, LOF, HRRN, SHORTEST = range(4)
ORDERS = {"fcfs": FCFS, "lof": LOF, "hrrn": HRRN, "shortest-prefill-first": SHORTEST}
LONG_QUEUE = 128
"""Waiting requests above which hrrn leaves the queue as it is."""


@dataclass(frozen=True)
class SGLang(PrefillFirst):
    """Prompts whenever one may run, in chunks, several to a batch; decodes all together in the iterations between.

    A prompt is admitted if the KV of its tokens and of all output that its user allows is free beside a share of what
    the running requests may still need: 0.7 at first, less with every decode iteration, more after a retraction. After
    a refusal nobody is let in until a request has left. Code: sgl-project/sglang 00550cd (2026-09) python/sglang/srt/
    managers/schedule_policy.py (SchedulePolicy, PrefillAdder), scheduler.py, schedule_batch.py (retract_decode). There
    is no prefix cache here, so all of a prompt counts as uncached and `lpm` is `fcfs`. Admission takes the KV of the
    whole prompt, there that of each chunk; chunks end at tokens as with page_size=1. Every user allows max_new_tokens,
    except under `lof`, where it is what the predictions say.
    """

    schedule_policy: Literal["fcfs", "lof", "hrrn", "shortest-prefill-first"] = "fcfs"
    """Order of the queue: fcfs; lof (most output tokens allowed first); hrrn (most prompt tokens processed since the
    arrival for each own first; fcfs where more than 128 wait); shortest-prefill-first (whose started prompt leaves
    room for shorter ones)."""

    name: ClassVar[str] = "sglang"
    paper: ClassVar[str] = "SGLang, github.com/sgl-project/sglang (HRRN: PR 32911)"
    knows: ClassVar[str] = "prompt length, limit of the output"
    evidence: ClassVar[str] = "public code, read; KV of a prompt taken whole, no prefix cache"
    request_memory: ClassVar[int] = cells_of(WAITER)
    row_memory: ClassVar[int] = cells_of(LINE)
    space: ClassVar[Space] = {
        "chunked_prefill_size": (512, 1024, 2048, 4096, 8192),
        "schedule_policy": ("fcfs", "hrrn", "shortest-prefill-first"),
        "schedule_conservativeness": (0.3, 1.0, 1.4),
        "enable_mixed_chunk": (False, True),
    }

    @property
    def channel(self) -> str:
        """Under lof, what users allow: the true lengths unless a run says otherwise."""
        return "oracle" if self.schedule_policy == "lof" else ""

    def encode(self, name: str, value: float | str) -> float:
        """The order as the number that the kernel compares."""
        return float(ORDERS[str(value)] if name == "schedule_policy" else value)


_params, _line, _waiters = record(params_of(SGLang)), record(LINE), records(WAITER)


@inner
def _key(view: View, line: Line, order: int, i: int) -> float:
    """What request `i` is sorted by."""
    r, q = view.request[i], line.request[i]
    if order == LOF:
        return -float(q.asks)
    if order == HRRN:
        return -float((view.row[0].prefill_tokens - q.seen_tokens) / (r.length - r.generated))
    return float(r.prompt)


@inner
def _order(view: View, plan: Plan, line: Line, order: int) -> None:
    """Bring the queue up to date and into its order."""
    first = line_up(view, plan, line)
    if order == LOF:
        for k in range(first, line.row.members):
            i = line.request[k].member.listed
            line.request[i].asks = max(1.0, view.request[i].prediction)
    if order == FCFS or (order == HRRN and line.row.members > LONG_QUEUE):
        return
    for k in range(line.row.members):
        i = line.request[k].member.listed
        line.request[i].key = _key(view, line, order, i)
    sort_line(line)


@kernel_of(SGLang)
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    line = Line(_line(memory.row), _waiters(memory.request), line_rule(memory.params))
    order = int(_params(memory.params).schedule_policy)
    if may_prefill(view, line):
        _order(view, plan, line, order)
        if prefill(view, plan, line, order == SHORTEST):
            return
    decode_all(view, plan, line)
