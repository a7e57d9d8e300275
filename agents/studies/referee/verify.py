"""Run a result again and say where it comes out otherwise.

What a file holds is deterministic: the same requests, decisions and numbers to the last bit wherever the same versions
run, on any number of processes. So what differs says something: of the code, of a version, or of the file. Times that
decisions took are left out, which only evaluations have.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from agents.evaluation.suite_runs import RunOptions
from agents.studies.referee.again import KINDS, Again, run_again
from agents.studies.referee.differences import Difference, differences
from agents.work.files import json_text
from engine.errors import InputError
from engine.files.reading import LARGE, kind_of, read_mapping

FILES = ("compare.json", "score.json", "result.json", "capacity.json", "devices.json", "headroom.json")
"""What results are called in the folders of their commands."""
FIRST = ("format", "config", "config_hash", "traces", "ceilings", "cells", "points")
"""Parts that are looked at before those that follow from them."""
RUNS = ("cells", "points")
"""What the runs are called in results."""
PLACE = re.compile(rf"(?:{'|'.join(RUNS)})\[(\d+)\]")
VERSIONS = "versions"


@dataclass(frozen=True)
class Verification:
    """What came of it."""

    runs: int
    """In the file."""
    made: int
    """That came out this time."""
    versions: tuple[Difference, ...]
    """What it was made with, where that is not what ran it again."""
    first: Difference | None
    """The first place at which it came out otherwise; None: nowhere, but perhaps for versions."""
    run: str
    """That in which it is, in words; empty if it is in none."""
    runs_differ: int
    """Of them ..."""
    traces_differ: int
    """... and those whose requests were others."""

    @property
    def is_identical(self) -> bool:
        """Whether the file came out again to the last bit."""
        return self.first is None and not self.versions

    def lines(self) -> Iterator[str]:
        """What to tell."""
        if self.is_identical:
            yield f"identical: {self.runs} runs, every number"
            return
        for version in self.versions:
            yield str(version)
        if self.first is None:
            yield f"differs in {VERSIONS} alone: {self.runs} runs, every number the same"
            return
        yield f"differs: {f'{self.run}: ' if self.run else ''}{self.first}"
        yield f"{self.runs_differ} of {self.runs} runs differ, {self.traces_differ} of them in their requests"
        if self.made != self.runs:
            yield f"the file holds {self.runs} runs, its configuration makes {self.made}"


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
    return compared(data, json.loads(json_text(run_again(Again(data, trace, how)))))


def compared(stored: Mapping[str, Any], made: Mapping[str, Any]) -> Verification:
    """Where a result differs from what came out again."""
    found = chain.from_iterable(_part(stored, made, key) for key in _keys(stored, made))
    first = next(found, None)
    before, after = _runs(stored), _runs(made)
    pairs = list(_pairs(before, after))
    return Verification(
        runs=len(before),
        made=len(after),
        versions=tuple(differences(stored.get(VERSIONS), made.get(VERSIONS), VERSIONS)),
        first=first,
        run=_run_name(first, before) if first else "",
        runs_differ=sum(one != other for one, other in pairs),
        traces_differ=sum([*_traces(one)] != [*_traces(other)] for one, other in pairs),
    )


def _pairs(before: Sequence[Any], after: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each run of the file with that which came out again, one by one or, where some are not there, by name."""
    if len(before) == len(after):
        yield from zip(before, after, strict=True)
    else:
        made = {_name(run): run for run in after}
        yield from ((run, made.get(_name(run))) for run in before)


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


def _runs(data: Mapping[str, Any]) -> Sequence[Any]:
    found = (data[name] for name in RUNS if isinstance(data.get(name), list))
    return next(found, [])


def _traces(run: object) -> Iterator[object]:
    """The digests of the requests in what is kept of a run."""
    if isinstance(run, Mapping):
        for key, value in run.items():
            yield from (value,) if key == "trace" else _traces(value)
    elif isinstance(run, list):
        for part in run:
            yield from _traces(part)


def _run_name(difference: Difference, runs: Sequence[Any]) -> str:
    """The run that a place is in; empty if it is in none."""
    found = PLACE.match(difference.place)
    return _name(runs[int(found[1])]) if found else ""


def _name(run: object) -> str:
    """What tells a run from the others: scenario or load, policy or setting, seed."""
    if not isinstance(run, Mapping):
        return ""
    words = [run.get(key) for key in ("scenario", "profile", "load", "share", "rate", "policy", "variant")]
    return ", ".join([*(str(word) for word in words if word is not None), f"seed {run.get('seed')}"])
