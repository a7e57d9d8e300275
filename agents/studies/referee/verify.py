"""Run a result again and say where it comes out otherwise.

What a file holds is deterministic: the same requests, decisions and numbers to the last bit wherever the same versions
run, on any number of processes. So what differs says something: of the code, of a version, or of the file. Times that
decisions took are left out, which only evaluations have.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from agents.evaluation.evaluate import Evaluation, evaluate
from agents.evaluation.result import FORMAT as EVALUATION
from agents.evaluation.result import Comparison
from agents.evaluation.suite_runs import RunOptions
from agents.source import Source
from agents.studies.referee.differences import Difference, differences
from agents.studies.referee.records import FORMAT as COMPARE
from agents.studies.referee.run import OptionStudy, compare_options
from agents.studies.score.records import FORMAT as SCORE
from agents.studies.score.run import Contest, run_contest
from agents.work.files import json_text
from agents.work.records import part, picked
from engine.config import EngineConfig
from engine.device.latency import LatencyModel
from engine.errors import InputError
from engine.files.reading import LARGE, kind_of, read_mapping
from engine.runs.goodput import Goodput
from engine.scenarios.suite import Suite

FILES = ("compare.json", "score.json", "result.json")
"""What results are called in the folders of their commands."""
FIRST = ("format", "config", "config_hash", "traces", "cells")
"""Parts that are looked at before those that follow from them."""
VERSIONS = "versions"


@dataclass(frozen=True)
class _OfSuite:
    suite: dict[str, Any]


@dataclass(frozen=True)
class _Scored:
    scored: tuple[str, ...]
    config: _OfSuite = field(metadata=part(_OfSuite))


@dataclass(frozen=True)
class _Compared:
    policy: str
    options: dict[str, tuple[str, ...]]
    baseline: str
    config: _OfSuite = field(metadata=part(_OfSuite))


@dataclass(frozen=True)
class _Evaluated:
    """The configuration of an evaluation."""

    source: dict[str, Any]
    seeds: int
    profile: LatencyModel
    engine: EngineConfig
    horizon_s: float | None
    warmup_s: float
    goodput: Goodput | None
    loads: tuple[float | None, ...]


class Again(NamedTuple):
    """What it takes to run a result again."""

    data: Mapping[str, Any]
    """What the file holds."""
    trace: str | None
    """The trace that was served, if there was one."""
    how: RunOptions


def _score(again: Again) -> object:
    stored = picked(_Scored, again.data, "score")
    return run_contest(Contest(Suite.from_dict(stored.config.suite, "config.suite"), stored.scored), again.how)


def _compare(again: Again) -> object:
    stored = picked(_Compared, again.data, "compare")
    suite = Suite.from_dict(stored.config.suite, "config.suite")
    return compare_options(OptionStudy(suite, stored.policy, stored.options, stored.baseline), again.how)


def _evaluation(again: Again) -> object:
    result = Comparison.from_dict(again.data)
    stored = picked(_Evaluated, result.config, "config")
    given = {"horizon_s": stored.horizon_s} if stored.horizon_s is not None else {}
    evaluation = Evaluation(
        policies=result.labels,
        source=Source.from_dict(stored.source, stored.engine, again.trace, "config.source"),
        seeds=stored.seeds,
        reference=result.reference,
        profile=stored.profile,
        config=stored.engine,
        warmup_s=stored.warmup_s,
        goodput=stored.goodput,
        loads=stored.loads,
        **given,
    )
    return evaluate(
        evaluation,
        workers=again.how.workers,
        with_windows=result.windows is not None,
        with_behaviour=bool(result.behaviour),
        progress=again.how.progress,
    )


KINDS: dict[str, Callable[[Again], object]] = {COMPARE: _compare, SCORE: _score, EVALUATION: _evaluation}
"""What runs a result again, by its format."""


@dataclass(frozen=True)
class Verification:
    """What came of it."""

    cells: int
    """Runs in the file."""
    versions: tuple[Difference, ...]
    """What it was made with, where that is not what ran it again."""
    first: Difference | None
    """The first place at which it came out otherwise; None: nowhere, but perhaps for versions."""
    cell: str
    """The run in which that is, in words; empty if it is in none."""
    cells_differ: int
    traces_differ: int
    """Runs whose requests were others."""

    @property
    def is_identical(self) -> bool:
        """Whether the file came out again to the last bit."""
        return self.first is None and not self.versions

    def lines(self) -> Iterator[str]:
        """What to tell."""
        if self.is_identical:
            yield f"identical: {self.cells} runs, every number"
            return
        for version in self.versions:
            yield str(version)
        if self.first is None:
            yield f"differs in {VERSIONS} alone: {self.cells} runs, every number the same"
            return
        yield f"differs: {f'{self.cell}: ' if self.cell else ''}{self.first}"
        yield f"{self.cells_differ} of {self.cells} runs differ, {self.traces_differ} of them in their requests"


def read_result(path: Path) -> dict[str, Any]:
    """A result of one of KINDS, from its file or the folder of its command.

    Raises:
        InputError: no such file, or a result of another kind.
    """
    file = path
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise InputError(f"{path}: expected a folder with one of {', '.join(FILES)}, got none of them")
        file = found[0]
    data = read_mapping(file, "a result", LARGE)
    if data.get("format") not in KINDS:
        raise InputError(
            f"{file}: expected a result with format {' or '.join(KINDS)}, got {kind_of(data.get('format'))}"
        )
    return data


def verify(data: Mapping[str, Any], trace: str | None, how: RunOptions) -> Verification:
    """Run a result again and compare.

    Args:
        data: what `read_result` gives.
        trace: the trace that was served, if there was one.
        how: where it is run.

    Raises:
        InputError: the file does not say what to run, or it cannot be run here.
        PolicyError: a policy broke the rules.
    """
    if trace is not None and data["format"] != EVALUATION:
        raise InputError(f"trace: expected none beside a result of a suite, got {trace}")
    made = json.loads(json_text(KINDS[data["format"]](Again(data, trace, how))))
    return compared(data, made)


def compared(stored: Mapping[str, Any], made: Mapping[str, Any]) -> Verification:
    """Where a result differs from what came out again."""
    found = chain.from_iterable(_part(stored, made, key) for key in _keys(stored, made))
    first = next(found, None)
    cells = list(zip(_cells(stored), _cells(made), strict=False))
    return Verification(
        cells=len(_cells(stored)),
        versions=tuple(differences(stored.get(VERSIONS), made.get(VERSIONS), VERSIONS)),
        first=first,
        cell=_cell_name(first, _cells(stored)) if first else "",
        cells_differ=sum(one != other for one, other in cells) + abs(len(_cells(stored)) - len(_cells(made))),
        traces_differ=sum(_trace(one) != _trace(other) for one, other in cells),
    )


def _keys(stored: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    """The parts of a result, what others follow from first; versions are a matter of their own."""
    known = dict.fromkeys((*stored, *made))
    return (key for key in dict.fromkeys((*FIRST, *known)) if key in known and key != VERSIONS)


def _part(stored: Mapping[str, Any], made: Mapping[str, Any], key: str) -> Iterator[Difference]:
    one, other = ({key: _timeless(data[key])} if key in data else {} for data in (stored, made))
    return differences(one, other)


def _timeless(part: object) -> object:
    """A part of a result without the times that decisions took."""
    if isinstance(part, Mapping):
        return {key: _timeless(value) for key, value in part.items() if key != "decision_us"}
    return part


def _cells(data: Mapping[str, Any]) -> Sequence[Any]:
    cells = data.get("cells")
    return cells if isinstance(cells, list) else []


def _trace(cell: object) -> object:
    """The digest of the requests of a run; it may be that of its point."""
    if not isinstance(cell, Mapping):
        return None
    return cell.get("trace", _trace(cell.get("point")))


def _cell_name(difference: Difference, cells: Sequence[Any]) -> str:
    """The run that a place is in: scenario or load, policy or setting, seed."""
    number = difference.place.removeprefix("cells[").partition("]")[0]
    if not difference.place.startswith("cells[") or not isinstance(cell := cells[int(number)], Mapping):
        return ""
    words = [cell.get(key) for key in ("scenario", "load", "policy", "variant")]
    return ", ".join([*(str(word) for word in words if word is not None), f"seed {cell.get('seed')}"])
