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
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents.device.importing.model import read_config, shape_of
from agents.device.importing.source import Imported, Importing
from agents.device.importing.tables import Row, read_rows
from engine.device.fitting import DECODE, HELD_OUT, MIXED, PREFILL, TABLE, Batch, Point
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
LEAST, MOST = 32, 4000
"""Rows that a fit needs, and that it takes: of more a random part."""
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


def iterations(path: Path) -> list[tuple[Batch, float]]:
    """The batches of a log with their seconds; of a long one a random part.

    Raises:
        InputError: not such a log; says which line.
    """
    rows = read_rows(path, "a log of iterations", tuple(NEEDED))
    if len(rows) < LEAST:
        raise InputError(f"{path}: expected {LEAST} or more iterations, got {len(rows)}")
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST])
    return [_iteration(_numbers(rows[k]), rows[k].where) for k in chosen]


def _numbers(row: Row) -> dict[str, float]:
    """The numbers of the columns that mean something."""
    known = NEEDED | FURTHER
    return {name: known[name].parse(cell, f"{row.where}: {name}") for name, cell in row.cells.items() if name in known}


def _kinds(batches: Sequence[Batch]) -> list[str]:
    """The set of each batch: a random part is held out, and some with as many different token counts make the table."""
    held = np.random.default_rng(1).random(len(batches)) < HELD
    kinds = [
        _SETS[bool(batch.prefills), bool(batch.decodes)][int(out)] for batch, out in zip(batches, held, strict=True)
    ]
    for k in _nodes(batches):
        kinds[k] = TABLE
    return kinds


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
    rows = iterations(data)
    kinds = _kinds([batch for batch, _ in rows])
    provenance = {
        "device": options.system or "not stated",
        "model": shape_of(read_config(options.model), str(options.model)).to_dict() if options.model else "not stated",
        "tp": options.tp,
        "engine": f"{options.backend} {options.version or ''}".strip(),
        "attention": "as the server ran it",
        "source": data.name,
        "method": f"{len(rows)} iterations of a real server, host included; equal shares of what a row sums up",
    }
    return Imported([Point(kind, *row) for kind, row in zip(kinds, rows, strict=True)], provenance)
