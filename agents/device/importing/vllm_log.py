"""`--from vllm-log FILE`: what a real server logged of its iterations, a csv file with a row for each.

    prompt_tokens,decodes,context,seconds
    512,31,36211,0.0471
    0,32,37020,0.0213

prompt_tokens: tokens of prompts that the iteration computed; decodes: requests that got a token besides; context: KV
tokens that these decodes read, all together; seconds: what the iteration took, its host included. Two more columns
help if they are there: prompts (requests that the prompt tokens belong to, else 1) and prompt_context (KV tokens that
were there before those, all together, else 0). Other columns say nothing.

In vLLM these are sums over `SchedulerOutput.num_scheduled_tokens` and `num_computed_tokens` of each request, written
where the engine's core takes the time around a step. Equal parts are assumed of what a row says together.

The rows are in the order in which the iterations ran. An engine that schedules ahead sees the tokens of an iteration
once the next one has been launched, so that an iteration before a prompt may look as long as that one, which then looks
short: of iterations with prompts and the one before them the sum is shared out by what a first fit says of each.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from agents.device.importing.model import read_config, shape_of
from agents.device.importing.source import Imported, Importing
from agents.device.importing.tables import Row, read_rows
from engine.device.fitting import DECODE, HELD_OUT, MIXED, PREFILL, SERVER, TABLE, Batch, Point, measured
from engine.device.solving import Served
from engine.errors import InputError
from engine.ranges import Bounds, number, whole

NEEDED: dict[str, Bounds] = {
    "prompt_tokens": whole(0, 2**24),
    "decodes": whole(0, 2**16),
    "context": whole(0, 2**40),
    "seconds": number(0.0, 1e6, above=True),
}
"""Columns of every log."""
FURTHER = {"prompts": whole(1, 2**16), "prompt_context": whole(0, 2**40)}
"""Columns that may be there."""
LEAST, MOST = 32, 8000
"""Rows that a fit needs, and that it takes: of more a random part, in order."""
LONGEST = 50
"""Iterations whose seconds are shared out together, at most."""
NODES = 16
"""Token counts in the table of the linear layers."""
HELD = 0.2
"""Share of the rows that is held out."""
_SETS = {
    (True, False): (PREFILL, HELD_OUT[0]),
    (False, True): (DECODE, HELD_OUT[1]),
    (True, True): (MIXED, HELD_OUT[2]),
}
"""By whether a batch has prompts and decodes: the set that is fitted, and the one that is held out."""


def _shares(total: int, count: int) -> list[int]:
    """So many parts of a whole, as equal as whole numbers are."""
    return [total // count + (k < total % count) for k in range(count)]


def _iteration(row: dict[str, float], where: str) -> tuple[Batch, float]:
    """The batch of a row and its seconds.

    Raises:
        InputError: numbers that cannot be of one batch.
    """
    tokens, decodes, context = (int(row[name]) for name in ("prompt_tokens", "decodes", "context"))
    prompts, before = int(row.get("prompts", 1)), int(row.get("prompt_context", 0))
    if tokens + decodes < 1:
        raise InputError(f"{where}: expected prompt_tokens or decodes > 0, got an empty iteration")
    if context < decodes:
        raise InputError(f"{where}: expected a context of {decodes} or more for as many decodes, got {context}")
    if 0 < tokens < prompts:
        raise InputError(f"{where}: expected {prompts} or more prompt_tokens for as many prompts, got {tokens}")
    chunks = zip(_shares(tokens, prompts), _shares(before, prompts), strict=True) if tokens else ()
    return Batch(tuple(chunks), tuple(_shares(context, decodes)) if decodes else ()), row["seconds"]


def iterations(path: Path) -> tuple[list[tuple[Batch, float]], np.ndarray]:
    """The batches of a log with their seconds, and of which group each is; of a long log a random part of the groups.

    Raises:
        InputError: not such a log; says which line.
    """
    rows = read_rows(path, "a log of iterations", tuple(NEEDED))
    if len(rows) < LEAST:
        raise InputError(f"{path}: expected {LEAST} or more iterations, got {len(rows)}")
    group = groups([row.cells["prompt_tokens"].strip(" 0.") != "" for row in rows])
    order = np.random.default_rng(0).permutation(group[-1] + 1)
    kept = order[np.cumsum(np.bincount(group)[order]) <= max(MOST, LONGEST)]
    chosen = np.flatnonzero(np.isin(group, kept))
    found = [_iteration(_numbers(rows[k]), rows[k].where) for k in chosen]
    return found, np.unique(group[chosen], return_inverse=True)[1]


def groups(with_prompt: Sequence[bool]) -> np.ndarray:
    """The group of each iteration, int64, from 0: those with prompts go with the one before them."""
    group = np.zeros(len(with_prompt), np.int64)
    current = length = 0
    for k, joins in enumerate(with_prompt[1:], 1):
        length = length + 1 if joins and length + 1 < LONGEST else 0
        current += length == 0
        group[k] = current
    return group


def _numbers(row: Row) -> dict[str, float]:
    """The numbers of the columns that mean something."""
    known = NEEDED | FURTHER
    return {name: known[name].parse(cell, f"{row.where}: {name}") for name, cell in row.cells.items() if name in known}


def _kinds(batches: Sequence[Batch], held: np.ndarray) -> list[str]:
    """The set of each batch: some are held out, and some with as many different token counts make the table."""
    kinds = [
        _SETS[bool(batch.prefills), bool(batch.decodes)][int(out)] for batch, out in zip(batches, held, strict=True)
    ]
    for k in _nodes(batches):
        kinds[k] = TABLE
    return kinds


def _shared_out(points: Sequence[Point], group: np.ndarray, held: np.ndarray) -> list[Point]:
    """The points, of which each group takes as long as before, and each of its batches a part as long as a fit says."""
    nodes = np.array(sorted({p.batch.tokens for p in points if p.kind == TABLE}), np.float64)
    seen = np.flatnonzero(~held)
    served = Served(measured([points[int(k)] for k in seen], nodes), np.unique(group[seen], return_inverse=True)[1])
    said = np.maximum(Served(measured(points, nodes), group).said(served.solve()), 1e-9)
    took = np.array([p.seconds for p in points])
    share = np.bincount(group, took)[group] / np.bincount(group, said)[group]
    return [replace(p, seconds=float(s)) for p, s in zip(points, said * share, strict=True)]


def _nodes(batches: Sequence[Batch]) -> list[int]:
    """Batches whose token counts, from the smallest to the largest, carry the table of the linear layers.

    A table belongs to prompts alone; where a busy server ran none, to whatever has the fewest decodes.
    """
    tokens = np.array([batch.tokens for batch in batches], np.float64)
    decodes = np.array([len(batch.decodes) for batch in batches])
    found = []
    for aim in np.geomspace(tokens.min(), tokens.max(), NODES):
        off = np.abs(np.log(tokens / aim))
        near = np.flatnonzero(off <= max(off.min(), 0.02))
        found.append(int(near[np.argmin(decodes[near])]))
    return found


def read(data: Path, options: Importing) -> Imported:
    """The iterations of a log as measured batches.

    Raises:
        InputError: not such a log.
    """
    rows, group = iterations(data)
    held = (np.random.default_rng(1).random(group[-1] + 1) < HELD)[group]
    kinds = _kinds([batch for batch, _ in rows], held)
    points = [Point(kind, *row) for kind, row in zip(kinds, rows, strict=True)]
    if len({p.batch.tokens for p in points}) < 2:
        raise InputError(f"{data}: expected iterations of 2 or more token counts, got one")
    provenance = {
        "device": options.system or "not stated",
        "model": shape_of(read_config(options.model), str(options.model)).to_dict() if options.model else "not stated",
        "tp": options.tp,
        "engine": f"{options.backend} {options.version or ''}".strip(),
        "attention": "as the server ran it",
        "clock": SERVER,
        "source": data.name,
        "method": f"{len(rows)} iterations of a real server, host included; equal shares of what a row sums up",
    }
    return Imported(_shared_out(points, group, held), provenance)
