"""Batches by quota, shared by WAIT and Nested WAIT: classes of requests, each served only when enough of it are there.

A policy sorts the requests that are present into classes and says for each class whether it is *open* in this iteration
and how many may enter it. Open classes give every decode its token, go on with started prompts and let newcomers in;
the others keep their KV and wait. A class that has not been served for a timeout is open whatever its quota says.
"""

import itertools
import math
from typing import Annotated, Any, NamedTuple

import numpy as np

from engine.compiled.jit import inner
from engine.compiled.records import cells_of, record, records, series
from engine.demand.requests import INT32_MAX
from engine.errors import InputError
from engine.ranges import Readable, number, whole
from engine.server.kv import decode_need
from engine.server.moves import admit, chunk, decode, is_decode, take_kv
from engine.server.plan import drop
from engine.server.state import Plan, View
from engine.spec import Spec

MAX_CLASSES = 32
_BOUND, _QUOTA = number(0.0, INT32_MAX, above=True, noun="tokens"), whole(0, above=True, noun="requests")

RULE = np.dtype(
    [
        ("is_code", "f8"),  # whether the variant is that of the published code
        ("waits", "f8"),  # whether classes wait for their quotas
        ("timeout_s", "f8"),
        ("classes", "f8"),  # how many there are
    ],
    align=True,
)
"""The parameters, before a series of QUOTA."""

QUOTA = np.dtype(
    [
        ("bound", "f8"),  # output tokens up to which a request belongs to the class
        ("enter", "f8"),  # requests that enter at a time
        ("inside", "f8"),  # requests that it holds at most (of the published code)
    ],
    align=True,
)
"""The parameters of a class."""

CLASS = np.dtype(
    [
        ("at_entry", "i8"),  # requests at its entry
        ("inside", "i8"),  # requests behind it
        ("is_open", "i8"),  # whether the class is served in this iteration
        ("may_enter", "f8"),  # how many may enter in this iteration
        ("served_s", "f8"),  # when it was served last, s; -1: nobody is there
    ],
    align=True,
)
"""What is remembered of a class."""

PLACED = np.dtype(
    [
        ("kind", "i8"),  # class of the request
        ("at_entry", "i8"),  # whether it stands at the entry of its class
    ],
    align=True,
)
"""What is remembered of a request."""

CLASS_CELLS = MAX_CLASSES * cells_of(CLASS)
rule_of, quotas_of, rows_of, placed_in = record(RULE), series(QUOTA, behind=RULE), series(CLASS), records(PLACED)


class Classes(NamedTuple):
    """The classes in the parameters and the memory of a policy (`rule_of` and so on view them)."""

    rule: Any  # RULE
    quota: Any  # QUOTA[classes]
    row: Any  # CLASS[classes]
    request: Any  # PLACED[requests]


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


def encode_quotas(
    is_code: bool, waits: bool, timeout_s: float, quotas: list[tuple[float, int]], stages: list[float]
) -> np.ndarray:
    """The parameters as RULE and QUOTA lay them out; a class holds at most its quota in each of its stages."""
    cells = [float(is_code), float(waits), timeout_s, float(len(quotas))]
    for (bound, quota), count in zip(quotas, stages, strict=True):
        cells += [bound, float(quota), quota * count if math.isfinite(count) else np.inf]
    return np.array(cells)


@inner
def empty_classes(classes: Classes) -> None:
    """Start counting anew."""
    for c in range(int(classes.rule.classes)):
        k = classes.row[c]
        k.at_entry, k.inside, k.is_open, k.may_enter = 0, 0, 0, 0.0


@inner
def place(classes: Classes, i: int, c: int, at_entry: bool) -> None:
    """Count request `i` in class `c`."""
    classes.request[i].kind, classes.request[i].at_entry = c, at_entry
    if at_entry:
        classes.row[c].at_entry += 1
    else:
        classes.row[c].inside += 1


@inner
def has_quota(classes: Classes, c: int) -> bool:
    """Whether class `c` has as many requests at its entry as it takes in; sets how many may enter."""
    q, k = classes.quota[c], classes.row[c]
    enter = q.enter
    if classes.rule.is_code:
        enter = min(enter, max(0.0, q.inside - k.inside))
    k.may_enter = min(enter, k.at_entry)
    return bool(k.at_entry >= enter)


@inner
def open_late(view: View, classes: Classes) -> None:
    """Open the classes that have been waiting for the timeout; remember since when the others do."""
    now = view.row[0].now
    for c in range(int(classes.rule.classes)):
        k = classes.row[c]
        if k.at_entry + k.inside == 0:
            k.served_s = -1.0
        elif k.served_s < 0.0:
            k.served_s = now
        elif now >= k.served_s + classes.rule.timeout_s:
            k.is_open = 1
            has_quota(classes, c)


@inner
def _enters(classes: Classes, i: int) -> bool:
    """Whether request `i`, which holds KV, is behind the entry of its class or may pass it now."""
    k = classes.row[classes.request[i].kind]
    if classes.request[i].at_entry:
        if k.may_enter <= 0.0:
            return False
        k.may_enter -= 1.0
    return True


@inner
def _run_decodes(view: View, plan: Plan, classes: Classes) -> int:
    """Decodes of open classes, oldest first; who finds no block takes those of the youngest request, open or not.

    Returns:
        How many of `running` still hold KV.
    """
    row, draft = view.row[0], plan.draft[0]
    last, k = row.num_running, 0
    while k < last and draft.tokens < row.max_batched_tokens:
        i = view.running[k]
        r, its = view.request[i], classes.row[classes.request[i].kind]
        k += 1
        if not is_decode(r) or not its.is_open or not _enters(classes, i):
            continue
        need = decode_need(r, row.block_size)
        while need > draft.free and last > k:
            last -= 1
            take_kv(view, plan, view.running[last])
        if need <= draft.free:
            decode(view, plan, i)
            its.served_s = row.now
    return last


@inner
def _continue_prompts(view: View, plan: Plan, classes: Classes, last: int) -> None:
    """Started prompts of open classes among ``running[:last]``."""
    row, draft = view.row[0], plan.draft[0]
    for j in range(last):
        i = view.running[j]
        its, room = classes.row[classes.request[i].kind], row.max_batched_tokens - draft.tokens
        if not is_decode(view.request[i]) and its.is_open and room > 0:
            chunk(view, plan, i, room)
            its.served_s = row.now


@inner
def _admit(view: View, plan: Plan, classes: Classes, entry: int) -> None:
    """Newcomers of open classes; `entry` is the class of everybody in the queue, -1: as placed."""
    row, draft, enter = view.row[0], plan.draft[0], 0.0
    for c in range(int(classes.rule.classes)):
        if classes.row[c].is_open and (entry < 0 or c == entry):
            enter += classes.row[c].may_enter
    for j in range(row.num_waiting):
        if enter <= 0.0:
            break
        i = view.queue[j]
        if view.request[i].prompt > row.max_model_len:
            drop(plan, i)
            continue
        its = classes.row[classes.request[i].kind if entry < 0 else entry]
        if not its.is_open or its.may_enter <= 0.0:
            continue
        if not admit(view, plan, i, row.max_batched_tokens - draft.tokens):
            break
        enter -= 1.0
        its.may_enter -= 1.0
        its.served_s = row.now


@inner
def serve_open(view: View, plan: Plan, classes: Classes, entry: int) -> None:
    """Plan the open classes; with nothing to run, wake when the next class has waited for the timeout.

    `entry` is the class of everybody in the queue; -1: as placed.
    """
    last = _run_decodes(view, plan, classes)
    _continue_prompts(view, plan, classes, last)
    _admit(view, plan, classes, entry)
    if plan.size[0] > 0:
        return
    for c in range(int(classes.rule.classes)):
        served_s = classes.row[c].served_s
        late = served_s + classes.rule.timeout_s
        if served_s >= 0.0 and late > view.row[0].now:
            plan.wake[0] = min(plan.wake[0], late)
