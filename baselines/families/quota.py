"""Batches by quota, shared by WAIT and Nested WAIT: classes of requests, each served only when enough of it are there.

A policy sorts the requests that are present into classes and says for each class whether it is *open* in this iteration
and how many may enter it. Open classes give every decode its token, go on with started prompts and let newcomers in;
the others keep their KV and wait. A class that has not been served for a timeout is open whatever its quota says.
"""

import itertools
import math
from typing import Annotated

import numpy as np

from engine.compiled.jit import inner
from engine.demand.requests import INT32_MAX
from engine.errors import InputError
from engine.ranges import Readable, number, whole
from engine.server.kv import blocks_to_admit, decode_need, tokens_left
from engine.server.plan import drop, evict, schedule
from engine.server.state import Memory, Plan, View
from engine.spec import Spec

MAX_CLASSES = 32
_BOUND, _QUOTA = number(0.0, INT32_MAX, above=True, noun="tokens"), whole(0, above=True, noun="requests")
CODE, WAITS, TIMEOUT, NUM_CLASSES, FIRST_CLASS = range(5)
"""Cells of the parameters; from FIRST_CLASS on, three for each class: upper bound in tokens, quota, limit."""

CLASS, AT_ENTRY, QUOTA_REQUEST_MEMORY = range(3)
"""Columns: class of a request, whether it stands at the entry of its class."""
WAITING_AT, INSIDE, OPEN, ENTERS, LAST, QUOTA_CELLS = range(6)
"""Cells of each class: requests at its entry, requests inside, whether it is open, how many may enter, when it was
served last (s; -1: nobody is there)."""
QUOTA_ROW_MEMORY = MAX_CLASSES * QUOTA_CELLS


def parse_quotas(text: str, where: str) -> list[tuple[float, int]]:
    """Classes from ``bound:quota;bound:quota``, bounds in output tokens and rising; the last one may be inf.

    Raises:
        InputError: not that.
    """
    quotas: list[tuple[float, int]] = []
    for part in text.split(";"):
        pair = Spec.parse(part)
        if not pair.rest:
            raise InputError(f"{where}: expected tokens:requests;tokens:requests, got {part!r}")
        last = math.inf if pair.name.strip() == "inf" else _BOUND.parse(pair.name, where)
        quotas.append((last, _QUOTA.parse(pair.rest, where)))
    bounds = [0.0, *(bound for bound, _ in quotas)]
    if not all(a < b for a, b in itertools.pairwise(bounds)):
        raise InputError(f"{where}: expected rising token counts > 0, got {text!r}")
    if min(quota for _, quota in quotas) < 1 or len(quotas) > MAX_CLASSES:
        raise InputError(f"{where}: expected 1 to {MAX_CLASSES} quotas >= 1, got {text!r}")
    return quotas


Quotas = Annotated[str, Readable(parse_quotas)]
"""A parameter that says quotas."""


def encode_quotas(quotas: list[tuple[float, int]], stages: list[float]) -> list[float]:
    """Bounds, quotas and limits for the kernel; the limit of a class is its quota in each of its stages."""
    cells = [float(len(quotas))]
    for (bound, quota), count in zip(quotas, stages, strict=True):
        cells += [bound, float(quota), quota * count if math.isfinite(count) else np.inf]
    return cells


@inner
def class_of(memory: Memory, output: float) -> int:
    """The first class whose bound is not below `output` tokens, else the last."""
    p = memory.params
    last = int(p[NUM_CLASSES]) - 1
    for c in range(last):
        if output <= p[FIRST_CLASS + 3 * c]:
            return c
    return last


@inner
def forget_classes(memory: Memory) -> None:
    """Start counting anew."""
    for c in range(int(memory.params[NUM_CLASSES])):
        for cell in (WAITING_AT, INSIDE, OPEN, ENTERS):
            memory.row[QUOTA_CELLS * c + cell] = 0.0


@inner
def put(memory: Memory, i: int, c: int, at_entry: bool) -> None:
    """Count request `i` in class `c`."""
    memory.request[i, CLASS] = c
    memory.request[i, AT_ENTRY] = 1.0 if at_entry else 0.0
    memory.row[QUOTA_CELLS * c + (WAITING_AT if at_entry else INSIDE)] += 1.0


@inner
def has_quota(memory: Memory, c: int) -> bool:
    """Whether class `c` has as many requests at its entry as it takes in; sets how many may enter."""
    p, cell = memory.params, QUOTA_CELLS * c
    quota = p[FIRST_CLASS + 3 * c + 1]
    if p[CODE]:
        quota = min(quota, max(0.0, p[FIRST_CLASS + 3 * c + 2] - memory.row[cell + INSIDE]))
    memory.row[cell + ENTERS] = min(quota, memory.row[cell + WAITING_AT])
    return bool(memory.row[cell + WAITING_AT] >= quota)


@inner
def open_late(view: View, memory: Memory) -> None:
    """Open the classes that have been waiting for the timeout; remember since when the others do."""
    now = view.row[0].now
    for c in range(int(memory.params[NUM_CLASSES])):
        cell = QUOTA_CELLS * c
        if memory.row[cell + WAITING_AT] + memory.row[cell + INSIDE] == 0.0:
            memory.row[cell + LAST] = -1.0
        elif memory.row[cell + LAST] < 0.0:
            memory.row[cell + LAST] = now
        elif now >= memory.row[cell + LAST] + memory.params[TIMEOUT]:
            memory.row[cell + OPEN] = 1.0
            has_quota(memory, c)


@inner
def _run_decodes(view: View, memory: Memory, plan: Plan) -> tuple[int, int, int]:
    """Decodes of open classes, oldest first; returns (running requests left, tokens, free blocks).

    Who finds no free block takes those of the youngest running request, open or not.
    """
    row, cells, free, tokens = view.row[0], memory.row, view.row[0].free_blocks, 0
    last, k = row.num_running, 0
    while k < last and tokens < row.max_batched_tokens:
        i = view.running[k]
        r = view.request[i]
        k += 1
        cell = QUOTA_CELLS * int(memory.request[i, CLASS])
        if r.prefilled < r.prompt or not cells[cell + OPEN]:
            continue
        if memory.request[i, AT_ENTRY]:
            if cells[cell + ENTERS] <= 0.0:
                continue
            cells[cell + ENTERS] -= 1.0
        need = decode_need(r, row.block_size)
        while need > free and last > k:
            last -= 1
            free += view.request[view.running[last]].blocks
            evict(plan, view.running[last])
        if need <= free:
            free -= need
            tokens += 1
            schedule(plan, i, 1)
            cells[cell + LAST] = row.now
    return last, tokens, free


@inner
def _may_enter(memory: Memory) -> float:
    """Newcomers that the open classes take in now."""
    enter = 0.0
    for c in range(int(memory.params[NUM_CLASSES])):
        if memory.row[QUOTA_CELLS * c + OPEN]:
            enter += memory.row[QUOTA_CELLS * c + ENTERS]
    return enter


@inner
def serve_open(view: View, memory: Memory, plan: Plan, entry: int) -> None:
    """Plan the open classes; with nothing to run, wake when the next class has waited for the timeout.

    `entry` is the class of everybody in the queue; -1: as put.
    """
    row, cells = view.row[0], memory.row
    last, tokens, free = _run_decodes(view, memory, plan)
    for k in range(last):
        i = view.running[k]
        r = view.request[i]
        cell = QUOTA_CELLS * int(memory.request[i, CLASS])
        chunk = min(r.prompt - r.prefilled, row.max_batched_tokens - tokens)
        if chunk > 0 and cells[cell + OPEN]:
            schedule(plan, i, chunk)
            tokens += chunk
            cells[cell + LAST] = row.now
    active = last
    enter = _may_enter(memory) if entry < 0 else cells[QUOTA_CELLS * entry + OPEN] * cells[QUOTA_CELLS * entry + ENTERS]
    for k in range(row.num_waiting):
        if enter <= 0.0:
            break
        i = view.queue[k]
        r = view.request[i]
        if r.prompt > row.max_model_len:
            drop(plan, i)
            continue
        cell = QUOTA_CELLS * (int(memory.request[i, CLASS]) if entry < 0 else entry)
        if not cells[cell + OPEN] or cells[cell + ENTERS] <= 0.0:
            continue
        need = blocks_to_admit(r, row.block_size)
        chunk = min(tokens_left(r), row.max_batched_tokens - tokens)
        if chunk <= 0 or need + row.watermark_blocks > free or active >= row.max_num_seqs:
            break
        schedule(plan, i, chunk)
        tokens += chunk
        free -= need
        active += 1
        enter -= 1.0
        cells[cell + ENTERS] -= 1.0
        cells[cell + LAST] = row.now
    if plan.size[0] == 0:
        for c in range(int(memory.params[NUM_CLASSES])):
            late = cells[QUOTA_CELLS * c + LAST] + memory.params[TIMEOUT]
            if cells[QUOTA_CELLS * c + LAST] >= 0.0 and late > row.now:
                plan.wake[0] = min(plan.wake[0], late)
