"""Measuring a real executor: the grid of batches, and the table of results as CSV that survives interruptions.

The grid is measured in rounds, each batch a few times in each of them, in a random order; a point is the median of its
rounds. So a machine that is slow for a minute spoils rounds, not points. Before its repetitions a batch runs once, to
find its KV where a server's batch finds it, most of which ran in the batch before, too. A row is written as soon as it
is known, so a profile that was stopped goes on where it was. Beside ``FILE.csv``, ``FILE.csv.json`` says what was
measured on what.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np

from agents.work.files import json_text, write_atomically
from engine.device.fitting import DECODE, HELD_OUT, MIXED, PREFILL, TABLE, Batch, Clock, Point
from engine.errors import InputError
from engine.fields import checked
from engine.files.lines import read_csv
from engine.files.reading import read_mapping, read_text
from engine.ranges import number, whole
from engine.server.features import FEATURES

FORMAT = "llmsched-measurements/2"
BATCH_COLUMNS = ("set", "prefills", "decodes")
FEATURE_COLUMNS = tuple(name for name in FEATURES.names or () if name not in ("decodes", "swapped"))
"""Features of the batch, for whoever reads the table elsewhere: a profile is fitted to the batch itself."""
ROUNDS, WARMUP, REPEATS = 7, 1, 3
MOST_CHUNKS = 3
PAGE = 16
"""KV tokens in multiples of which executors keep requests, says `engine.device.real.attention`, which needs torch."""
KINDS = (TABLE, PREFILL, DECODE, MIXED, *HELD_OUT)

TRIES = 10_000
"""Random batches that are drawn until one is within the limits."""
_CELL_TOKENS, _CELL_COUNT, _CELL_SECONDS = whole(0, 2**24), whole(1, 2**16), number(0.0, 1e6, above=True)


class Measuring(Protocol):
    """What can be profiled: `engine.device.real.executor.TransformersExecutor`."""

    def measure(self, prefills: Any, decodes: Any, repeats: int, warmup: int, clock: Clock) -> np.ndarray:
        """Seconds of each repetition of one batch, by the clock on the wall or of the device alone."""

    def provenance(self) -> dict[str, Any]:
        """Device, model and versions."""


@dataclass(frozen=True)
class Limits:
    """The largest batches to measure."""

    tokens: Annotated[int, whole(64, 2**20)] = 2048
    """Tokens of a batch."""
    context: Annotated[int, whole(64, 2**24)] = 6144
    """KV tokens of a request."""
    decodes: Annotated[int, whole(1, 2**16)] = 128
    """Decodes of a batch."""
    kv_tokens: Annotated[int, whole(256, 2**40)] = 224_000
    """KV tokens of all requests of a batch."""
    thin: Annotated[int, whole(1, 10**6)] = 1
    """Measure only one in so many points of each set (1: all)."""

    def __post_init__(self) -> None:
        """Check that batches of every set fit.

        Raises:
            InputError: a limit is out of range.
        """
        checked(self, "grid")

    @property
    def capacity_tokens(self) -> int:
        """KV buffers for such batches: every request has room for the token that it gets, and ends with a page."""
        return self.kv_tokens + PAGE * (self.decodes + MOST_CHUNKS)


def grid(limits: Limits, seed: int = 0) -> list[tuple[str, Batch]]:
    """The batches to measure with their sets; about 360 at full size.

    Token counts come at and just above multiples of 64, where the linear layers step; prompt chunks and decodes cross
    sizes with contexts; the held-out batches are drawn at random, contexts log-uniform.
    """
    rng = np.random.default_rng(seed)
    sets = {TABLE: _table(), PREFILL: _prefills(limits), DECODE: _decodes(), MIXED: _mixed()}
    drawn = (*zip(HELD_OUT, (20, 20, 60), strict=True), (DECODE, 12), (MIXED, 30), (PREFILL, 12))
    order = [TABLE, PREFILL, DECODE, *HELD_OUT, MIXED]
    for kind, count in drawn:
        sets[kind] = [*sets.get(kind, []), *(_random_batch(rng, kind, limits) for _ in range(count))]
    found: list[tuple[str, Batch]] = []
    for kind in order:
        fitting = [batch for batch in sets[kind] if _fits(batch, limits)]
        found += [(kind, batch) for batch in _thinned(fitting, limits.thin)]
    return list(dict.fromkeys(found))


def _thinned(batches: list[Batch], thin: int) -> list[Batch]:
    """One in so many, at random: every so manieth would leave out all the steps, or none; the ends always stay."""
    kept = np.random.default_rng(0).permutation(len(batches))[: -(-len(batches) // thin)]
    return [batches[k] for k in sorted({*kept.tolist(), *(0, len(batches) - 1)[: len(batches)]})]


def _table() -> list[Batch]:
    """One prompt each, around the multiples of 64 where the linear layers step."""
    edges = {1, 2, 4, 8, 16, 24, 32, 48, 64}
    edges |= {64 * k for k in range(1, 33)} | {64 * k + (8 if k < 16 else 16) for k in range(1, 33)}
    return [Batch(((n, 0),)) for n in sorted(edges)]


def _prefills(limits: Limits) -> list[Batch]:
    """Chunks behind contexts, alone and beside another one."""
    contexts = [k for k in (0, 512, 2048, 4096, 6144) if k <= limits.context]
    alone = [Batch(((n, k),)) for n in (16, 64, 128, 256, 512, 1024, 2048) for k in contexts if k]
    return alone + [Batch(((n, 0), (n, k))) for n in (64, 256, 512) for k in contexts]


def _decodes() -> list[Batch]:
    """As many decodes with equal contexts."""
    contexts = (128, 512, 1024, 2048, 4096)
    return [Batch((), (k,) * n) for n in (1, 2, 4, 8, 16, 32, 64, 96, 128) for k in contexts]


def _mixed() -> list[Batch]:
    """A chunk, at the start of its prompt or behind a context, beside as many decodes with equal contexts."""
    chunks = [(n, k) for n in (64, 256, 512, 1024) for k in (0, 2048)]
    return [Batch((chunk,), (k,) * n) for chunk in chunks for n in (8, 32, 96) for k in (512, 2048)]


def _random_batch(rng: np.random.Generator, kind: str, limits: Limits) -> Batch:
    def log_uniform(low: float, high: float) -> int:
        return int(np.exp(rng.uniform(np.log(low), np.log(high))))

    for _ in range(TRIES):
        chunks = 0 if "decode" in kind else int(rng.integers(1, MOST_CHUNKS + 1))
        decodes = 0 if "prefill" in kind else log_uniform(1, limits.decodes)
        prefills = tuple(
            (log_uniform(16, limits.tokens / 2), int(rng.integers(2)) * log_uniform(64, limits.context))
            for _ in range(chunks)
        )
        batch = Batch(prefills, tuple(log_uniform(64, limits.context) for _ in range(decodes)))
        if _fits(batch, limits):
            return batch
    raise InputError(f"grid: expected limits that {kind} batches fit, found none in {TRIES} tries within {limits}")


def _fits(batch: Batch, limits: Limits) -> bool:
    longest = max([*batch.decodes, *(n + k for n, k in batch.prefills)])
    return (
        batch.tokens <= limits.tokens
        and len(batch.decodes) <= limits.decodes
        and batch.kv_tokens <= limits.kv_tokens
        and longest <= limits.context + limits.tokens
    )


def _cells(kind: str, batch: Batch) -> tuple[str, str, str]:
    """Set, chunks (``512@0 64@2048``: new tokens and tokens before) and decodes (``1024x8 300``: tokens x requests)."""
    runs: list[list[int]] = []
    for context in batch.decodes:
        if runs and runs[-1][0] == context:
            runs[-1][1] += 1
        else:
            runs.append([context, 1])
    return (
        kind,
        " ".join(f"{n}@{context}" for n, context in batch.prefills),
        " ".join(f"{context}x{count}" if count > 1 else str(context) for context, count in runs),
    )


def _tokens(text: str) -> int:
    return int(_CELL_TOKENS.parse(text, "tokens"))


def _batch(prefills: str, decodes: str) -> Batch:
    chunks = tuple((_tokens(n), _tokens(k)) for n, _, k in (part.partition("@") for part in prefills.split()))
    contexts: list[int] = []
    for part in decodes.split():
        context, _, count = part.partition("x")
        contexts += [_tokens(context)] * int(_CELL_COUNT.parse(count or "1", "decodes"))
    batch = Batch(chunks, tuple(contexts))
    if batch.tokens < 1 or min([*contexts, *(n for n, _ in chunks)]) < 1:
        raise ValueError
    return batch


def read_points(path: Path) -> list[Point]:
    """Points of a table, each the median over its rounds.

    Raises:
        InputError: unreadable, not such a table, or a line that is cut off (says which).
    """
    rounds: dict[tuple[str, Batch], list[float]] = {}
    for row in _read_rows(path):
        rounds.setdefault((row.kind, row.batch), []).append(row.seconds)
    return [Point(kind, batch, float(np.median(seconds))) for (kind, batch), seconds in rounds.items()]


def _read_rows(path: Path) -> list[Point]:
    rows = read_csv(path, "a table of measurements")
    heads = tuple(rows[0][1]) if rows else ()
    if heads[: len(BATCH_COLUMNS)] != BATCH_COLUMNS or heads[-1] != "seconds":
        raise InputError(f"{path}, line 1: expected the columns {','.join(BATCH_COLUMNS)}, features, seconds")
    points = []
    for line, row in rows[1:]:
        try:
            seconds = float(_CELL_SECONDS.parse(row[-1], "seconds"))
            if len(row) != len(heads) or row[0] not in KINDS:
                raise ValueError
            points.append(Point(row[0], _batch(row[1], row[2]), seconds))
        except (ValueError, IndexError):
            raise InputError(f"{path}, line {line}: expected a measured batch, got {','.join(row)[:200]!r}") from None
    return points


def beside(path: Path) -> Path:
    """The file beside a table that says what it was measured on."""
    return path.with_name(path.name + ".json")


def read_provenance(path: Path) -> dict[str, Any]:
    """What a table was measured on, from the file beside it.

    Raises:
        InputError: no such file, or not of this format.
    """
    place = beside(path)
    data = read_mapping(place, "the description that `llmsched profile` writes")
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{place}: expected format {FORMAT!r}")
    return {key: value for key, value in data.items() if key != "format"}


def _check_provenance(path: Path, provenance: dict[str, Any]) -> None:
    """Check that a table was measured on this device, model and version."""
    known = read_provenance(path)
    for key, value in provenance.items():
        if key != "date" and known.get(key) != value:
            raise InputError(f"{path}: {key}: expected a table of {value!r}, got one of {known.get(key)!r}")


def todo(
    path: Path, wanted: list[tuple[str, Batch]], provenance: dict[str, Any], rounds: int = ROUNDS
) -> list[tuple[str, Batch]]:
    """What to measure, round after round, each in a random order, less what a table has; makes an empty one if needed.

    A last line that was cut off while it was written is taken off the table.

    Raises:
        InputError: a table of another device, model or version, or one that cannot be read.
    """
    if not path.exists():
        _begin(path, provenance)
    _check_provenance(path, provenance)
    text = read_text(path, "a table of measurements")
    if not text.endswith("\n"):
        write_atomically(path, text[: text.rfind("\n") + 1])
    done = Counter((row.kind, row.batch) for row in _read_rows(path))
    orders = (np.random.default_rng(k).permutation(len(wanted)) for k in range(rounds))
    return [wanted[j] for k, order in enumerate(orders) for j in order if done[wanted[j]] <= k]


def measure(executor: Measuring, path: Path, points: list[tuple[str, Batch]], clock: Clock = "wall") -> Iterator[Point]:
    """Measure points one after the other, each appended to the table before it is yielded.

    Raises:
        InputError: the device cannot run a batch; what was measured before stays.
    """
    with path.open("a", newline="", encoding="utf-8") as file:
        for kind, batch in points:
            seconds = float(np.median(executor.measure(batch.prefills, batch.decodes, REPEATS, WARMUP, clock)))
            point = Point(kind, batch, seconds)
            file.write(_line(point))
            file.flush()
            yield point


def write_points(path: Path, points: Sequence[Point], provenance: dict[str, Any]) -> None:
    """Write a table whose points are all known, and beside it what they were measured on.

    Raises:
        InputError: a file cannot be written.
    """
    _begin(path, provenance, "".join(map(_line, points)))


def _begin(path: Path, provenance: dict[str, Any], lines: str = "") -> None:
    """Write a table's heads with what it was measured on."""
    write_atomically(beside(path), json_text({"format": FORMAT, **provenance}))
    write_atomically(path, ",".join((*BATCH_COLUMNS, *FEATURE_COLUMNS, "seconds")) + "\n" + lines)


def _line(point: Point) -> str:
    """A row of the table."""
    features = (f"{point.batch.features()[name][0]:.15g}" for name in FEATURE_COLUMNS)
    return ",".join((*_cells(point.kind, point.batch), *features, f"{point.seconds:.9g}")) + "\n"


def estimate_s(executor: Measuring, points: list[tuple[str, Batch]], clock: Clock = "wall") -> float:
    """Seconds that measuring the points will take: from the smallest and the largest, linear in tokens."""
    if not points:
        return 0.0

    def size(point: tuple[str, Batch]) -> int:
        return point[1].tokens

    def took(batch: Batch) -> float:
        began = time.perf_counter()
        executor.measure(batch.prefills, batch.decodes, REPEATS, WARMUP, clock)
        return time.perf_counter() - began

    ends = (min(points, key=size)[1], max(points, key=size)[1])
    low, high = (min(took(batch) for _ in range(2)) for batch in ends)
    span = max(1, ends[1].tokens - ends[0].tokens)
    return sum(low + max(0.0, high - low) * (b.tokens - ends[0].tokens) / span for _, b in points)
