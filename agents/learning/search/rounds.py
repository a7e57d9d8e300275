"""The run folder of a search that goes in rounds (generations, updates): what was found survives an interruption.

<run_dir>/config.json     the configuration and how the search was started
<run_dir>/rounds.jsonl    one line per finished round, from which the search is repeated exactly
<run_dir>/log.csv         the same for people
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from agents.learning.run_folder import plain, read_about, refuse_difference, saved_config, write_about
from agents.work.cells import CellFile, cell_of
from agents.work.files import write_atomically
from agents.work.provenance import TRAINS, config_hash, source_hash, versions
from engine.errors import InputError

ROUNDS_FILE, LOG_FILE = "rounds.jsonl", "log.csv"


@dataclass(frozen=True)
class Search:
    """What the configurations of searches share: a run folder that is not part of what is searched."""

    run_dir: Path
    """Folder of the run."""

    @classmethod
    def of_run(cls, run_dir: Path) -> Self:
        """The configuration of the search in a folder.

        Raises:
            InputError: the folder holds none.
        """
        return replace(saved_config(cls, run_dir), run_dir=Path(run_dir))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the folder."""
        return {name: value for name, value in asdict(self).items() if name != "run_dir"}


@dataclass(frozen=True)
class Kind:
    """What the rounds of one kind of search are like."""

    heading: tuple[str, ...]
    """Columns of log.csv; the second is the seconds since the beginning."""
    width: int
    """Numbers that a round keeps."""
    counter: str
    """The entry of the configuration that says how many rounds are wanted."""
    free: tuple[str, ...]
    """Entries of the configuration that may differ when the search goes on."""


@dataclass(frozen=True)
class Round:
    """A finished round."""

    round: int
    """Its number, from 0 on."""
    numbers: tuple[float, ...]
    """What the search is repeated from."""
    row: tuple[float | None, ...]
    """Seconds since the beginning, then what log.csv says; None for what is not finite."""

    @property
    def key(self) -> int:
        """The number."""
        return self.round


class Rounds:
    """The finished rounds of a search, kept in its folder; whoever uses it has claimed the folder."""

    def __init__(self, search: Search, kind: Kind, command: str, resume: bool) -> None:
        """Start a folder, or go on with one.

        Args:
            search: the configuration; its run folder is the one.
            kind: what the rounds are like.
            command: how the search was started.
            resume: go on with what the folder holds.

        Raises:
            InputError: the folder holds another run, nothing to resume, another configuration, or more rounds already.
        """
        self.folder, self.command, self._kind = search.run_dir, command, kind
        config = plain(search.to_dict())
        if resume:
            self._check_run(config)
        elif any((self.folder / name).exists() for name in (ROUNDS_FILE, LOG_FILE)):
            raise InputError(
                f"run_dir: {self.folder} already holds a run; --resume continues it, or choose another folder"
            )
        about = {"config": config, "versions": versions(TRAINS), "command": self.command, "sources": source_hash()}
        if not resume:
            write_about(self.folder, about)
        path = self.folder / ROUNDS_FILE
        fixed = config_hash({key: value for key, value in config.items() if key not in kind.free})
        self._file = CellFile(path, fixed, self._round, resume and path.exists())
        self._rows: list[tuple[float | None, ...]] = []
        self.finished = self._unbroken()
        self._check_count(config)
        write_about(self.folder, about)
        self._began = time.perf_counter() - (self._rows[-1][0] or 0.0 if self._rows else 0.0)
        self._write_log()

    def _check_run(self, config: dict[str, Any]) -> None:
        """Check that the folder holds a search of this configuration, and take over how it was started."""
        about = read_about(self.folder)
        refuse_difference(config, about["config"], self._kind.free, self.folder)
        if isinstance(about.get("command"), str):
            self.command = about["command"]

    def _check_count(self, config: dict[str, Any]) -> None:
        counter, done = self._kind.counter, len(self.finished)
        if config[counter] < done:
            least = f"at least the {done} that are finished"
            raise InputError(f"resume: {self.folder}: {counter}: expected {least}, got {config[counter]}")

    def _round(self, data: Mapping[str, object]) -> Round:
        """A round of this search.

        Raises:
            InputError: it is none.
        """
        found = cell_of(Round, data)
        wanted = (self._kind.width, len(self._kind.heading) - 1)
        if (len(found.numbers), len(found.row)) != wanted or found.row[0] is None:
            raise InputError(f"round {found.round}: expected the numbers of another search")
        return found

    def _unbroken(self) -> list[list[float]]:
        """The numbers of the rounds from the first on, as far as none is missing."""
        by_round = {cell.round: cell for cell in self._file.cells}
        found: list[list[float]] = []
        while (cell := by_round.get(len(found))) is not None:
            found.append([float(value) for value in cell.numbers])
            self._rows.append(cell.row)
        return found

    def add(self, numbers: Sequence[float], row: Sequence[float]) -> None:
        """Keep a finished round.

        Args:
            numbers: what it is repeated from.
            row: its line of log.csv, but for number and seconds; what is not finite is "nan" there.

        Raises:
            InputError: a number that is not finite, or the folder cannot be written.
        """
        if not all(math.isfinite(value) for value in numbers):
            raise InputError(f"round {len(self.finished)}: expected finite costs, got one that is not")
        shown = (float(value) if math.isfinite(value) else None for value in row)
        self._rows.append((time.perf_counter() - self._began, *shown))
        kept = [float(value) for value in numbers]
        self._file.append(Round(len(self.finished), tuple(kept), self._rows[-1]))
        self.finished.append(kept)
        self._write_log()

    def _write_log(self) -> None:
        lines = [",".join(self._kind.heading)]
        for number, row in enumerate(self._rows):
            lines.append(",".join(f"{math.nan if value is None else value:.5g}" for value in [number, *row]))
        write_atomically(self.folder / LOG_FILE, "\n".join(lines) + "\n")


@contextlib.contextmanager
def going_on(folder: Path, command: str) -> Iterator[None]:
    """If the work inside is interrupted, say how to go on.

    Raises:
        KeyboardInterrupt: it was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        if (folder / ROUNDS_FILE).is_file():
            print(f"finished rounds are kept; llmsched {command} --resume --run-dir {folder} goes on from there")
        raise
