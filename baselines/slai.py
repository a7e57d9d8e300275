"""SLAI: last schedulable times for decodes, prefill in the slack (arXiv 2508.01002)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from baselines._fill import (
    FCFS,
    FILL_REQUEST_MEMORY,
    FILL_ROW_MEMORY,
    SPF,
    STRICT_SPF,
    admit_chunks,
    continue_prefills,
    evict_into,
    fits_decode,
    insert_sorted,
    is_decode,
    schedule_decode,
)
from baselines.grids import TOKEN_BUDGETS
from engine.compiled.jit import inner
from engine.server.policy import HotKernel, Kernel, Policy, Space, check_parameters, require
from engine.server.state import Memory, Plan, View

TOKEN_BUDGET, ORDER, OFFSET, PRESSURE_OFFSET, MEMORY_LIMIT, FIXED_OFFSET, MAX_DECODES = range(7)

LST, LISTED = FILL_REQUEST_MEMORY, FILL_REQUEST_MEMORY + 1
"""Columns of the request memory: last schedulable time of the next decode (s), a list of requests being sorted."""
BATCHES, MEAN = FILL_ROW_MEMORY, FILL_ROW_MEMORY + 1
"""Cells of the row memory: iterations counted, mean of their durations, s."""


@inner
def _update_deadlines(view: View, memory: Memory) -> tuple[int, int]:
    """Give each decode of the previous batch its LST = now + deadline - offset x mean batch duration.

    Returns:
        (decodes past their LST, other decodes).
    """
    row, p, cells = view.row[0], memory.params, memory.request
    if row.iterations > memory.row[BATCHES]:
        memory.row[BATCHES] += 1.0
        memory.row[MEAN] += (row.last_duration - memory.row[MEAN]) / memory.row[BATCHES]
    under_pressure = (row.num_blocks - row.free_blocks) / row.num_blocks >= p[MEMORY_LIMIT]
    offset = p[PRESSURE_OFFSET] if under_pressure and not p[FIXED_OFFSET] else p[OFFSET]
    lead, now, previous = offset * memory.row[MEAN], row.now, row.iterations - 1
    critical, rest = 0, 0
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if is_decode(r):
            if r.last_run == previous:
                cells[i, LST] = now + r.tbt - lead
            if now >= cells[i, LST]:
                critical += 1
            else:
                rest += 1
    return critical, rest


@inner
def _candidates(view: View, memory: Memory, critical: bool) -> int:
    """List the decodes on one side of their LST in column LISTED, by (LST, arrival); returns how many."""
    row = view.row[0]
    n = 0
    for j in range(row.num_running):
        i = view.running[j]
        if is_decode(view.request[i]) and (row.now >= memory.request[i, LST]) == critical:
            insert_sorted(memory.request, LISTED, LST, n, i)
            n += 1
    return n


@inner
def _take_critical(view: View, memory: Memory, plan: Plan, limit: int, last: int) -> tuple[int, int, int, int]:
    """Critical decodes in order, evicting for blocks: the last started prefill first, else the decode itself.

    Returns:
        (tokens planned, KV blocks free, victims, started prefills are those among ``running[:last]``).
    """
    row = view.row[0]
    n = _candidates(view, memory, True)
    free, tokens, victims = row.free_blocks, 0, 0
    for k in range(n):
        if tokens >= limit:
            break
        i = int(memory.request[k, LISTED])
        r = view.request[i]
        fits = fits_decode(row, r, free)
        while not fits:
            while last > 0 and is_decode(view.request[view.running[last - 1]]):
                last -= 1
            if last == 0:
                free += evict_into(plan, memory, view, i, victims)
                victims += 1
                break
            last -= 1
            free += evict_into(plan, memory, view, view.running[last], victims)
            victims += 1
            fits = fits_decode(row, r, free)
        if fits:
            free -= schedule_decode(plan, row, i, r)
            tokens += 1
    return tokens, free, victims, last


@inner
def _take_rest(view: View, memory: Memory, plan: Plan, room: int, free: int, victims: int) -> None:
    """Non-critical decodes in order while there is room; one that finds no block evicts itself."""
    row = view.row[0]
    n = _candidates(view, memory, False)
    for k in range(n):
        if room == 0:
            break
        i = int(memory.request[k, LISTED])
        r = view.request[i]
        if fits_decode(row, r, free):
            free -= schedule_decode(plan, row, i, r)
            room -= 1
        else:
            free += evict_into(plan, memory, view, i, victims)
            victims += 1


@inner
def _take_all(view: View, memory: Memory, plan: Plan, critical: bool, free: int) -> int:
    """Every decode on one side of its LST; for when neither blocks nor the budget can run out."""
    row = view.row[0]
    for j in range(row.num_running):
        i = view.running[j]
        r = view.request[i]
        if is_decode(r) and (row.now >= memory.request[i, LST]) == critical:
            free -= schedule_decode(plan, row, i, r)
    return free


@HotKernel
def _plan(view: View, memory: Memory, plan: Plan) -> None:
    row, p = view.row[0], memory.params
    budget, max_decodes = min(int(p[TOKEN_BUDGET]), row.max_batched_tokens), int(p[MAX_DECODES])
    critical, rest = _update_deadlines(view, memory)
    free, victims, last = row.free_blocks, 0, row.num_running
    limit = min(budget, max_decodes)
    if critical <= limit and critical <= free:
        tokens = critical
        free = _take_all(view, memory, plan, True, free)
    else:
        tokens, free, victims, last = _take_critical(view, memory, plan, limit, last)
    decodes = tokens
    tokens = continue_prefills(view, plan, last, tokens, budget)
    active = row.num_running - victims
    tokens, free = admit_chunks(view, memory, plan, int(p[ORDER]), victims, tokens, budget, free, active)
    room = min(budget - tokens, max_decodes - decodes)
    if rest <= min(room, free):
        _take_all(view, memory, plan, False, free)
    elif room > 0:
        _take_rest(view, memory, plan, room, free, victims)


@dataclass(frozen=True)
class SLAI(Policy):
    """Decodes wait until their last schedulable time (LST) unless budget is left; prompts use the time between.

    LST = end of the last batch + TBT deadline - offset x mean batch duration. A batch takes critical decodes (past
    their LST), started prompts, new prompts, then the other decodes. Code: agrimUT/SLAI
    sarathi/core/scheduler/slai_scheduler.py, commit 5098a7a. A decode that finds no free block evicts the started
    prompt queued last, else itself; it never evicts another decode.
    """

    token_budget: int = 512
    """Tokens per iteration."""
    order: str = "strict_spf"
    """Order of the waiting queue: fcfs, spf, or strict_spf (paying users first: the paper's user priority)."""
    offset: float = 5.0
    """Mean batch durations that the LST lies before the deadline."""
    pressure_offset: float = 10.0
    """The same while KV use is at or above memory_limit (the paper's dynamic offset)."""
    memory_limit: float = 0.96
    """Share of the KV blocks in use from which pressure_offset holds."""
    fixed_offset: bool = False
    """Always use offset."""
    max_decodes: int = 128
    """Decodes per iteration."""

    name: ClassVar[str] = "slai"
    paper: ClassVar[str] = "SLAI, SIGMETRICS 2026, arXiv 2508.01002"
    knows: ClassVar[str] = "prompt length, tier, batch times"
    eviction: ClassVar[str] = "started prefill, else the decode itself, recompute"
    evidence: ClassVar[str] = "public code, replayed step by step"
    request_memory: ClassVar[int] = FILL_REQUEST_MEMORY + 2
    row_memory: ClassVar[int] = FILL_ROW_MEMORY + 2
    kernel: ClassVar[Kernel | None] = _plan
    space: ClassVar[Space] = {
        "token_budget": TOKEN_BUDGETS,
        "order": ("fcfs", "spf", "strict_spf"),
        "offset": (1.0, 2.0, 3.0, 5.0, 7.0),
        "pressure_offset": (2.0, 5.0, 10.0, 20.0),
        "memory_limit": (0.6, 0.7, 0.8, 0.9, 0.96),
    }

    def __post_init__(self) -> None:
        """Check the parameters."""
        check_parameters(self)
        require(self.token_budget >= 1, self, "token_budget", "tokens >= 1")
        require(self.max_decodes >= 1, self, "max_decodes", "requests >= 1")
        require(self.order in ("fcfs", "spf", "strict_spf"), self, "order", "fcfs, spf or strict_spf")
        require(self.offset >= 0.0, self, "offset", "a number >= 0")
        require(self.pressure_offset >= 0.0, self, "pressure_offset", "a number >= 0")
        require(0.0 <= self.memory_limit, self, "memory_limit", "a share >= 0")

    def encode(self, name: str, value: Any) -> float:
        """The order as the number that the kernel compares."""
        return float({"fcfs": FCFS, "spf": SPF, "strict_spf": STRICT_SPF}[value] if name == "order" else value)
