"""Searches that are interrupted go on from their folder to the same result, to the last bit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agents.cli
from agents.learning.learned.bundle import Bundle
from agents.learning.learned.network import network_params
from agents.learning.search.evolution import EvolutionConfig, evolve
from agents.learning.search.rounds import LOG_FILE, ROUNDS_FILE
from agents.learning.search.static_mixture import MixtureConfig, learn_mixture
from engine.errors import InputError

EVOLUTION = EvolutionConfig(rates=(1.0,), requests=20, generations=4, population=4, workers=1)
MIXTURE = MixtureConfig(arms=("sarathi", "orca"), rates=(1.0,), requests=12, pairs=1, updates=4, workers=1)
SEARCHES: dict[str, tuple[Any, Callable[..., Path]]] = {
    "evolve": (EVOLUTION, evolve),
    "mixture": (MIXTURE, learn_mixture),
}


class Interrupter:
    """Presses Ctrl-C when this many rounds are finished."""

    def __init__(self, rounds: int) -> None:
        self.left = rounds

    def __call__(self, line: str) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def quiet(line: str) -> None:
    """Say nothing."""


def result(folder: Path) -> tuple[bytes, list[list[str]]]:
    """The policy, and the log without the seconds."""
    log = [line.split(",") for line in (folder / LOG_FILE).read_text().splitlines()]
    return network_params(Bundle.load(folder / "final")).tobytes(), [[row[0], *row[2:]] for row in log]


@pytest.mark.parametrize("name", SEARCHES)
def test_an_interrupted_search_goes_on_to_the_same_result(name: str, tmp_path: Path) -> None:
    config, search = SEARCHES[name]
    whole = search(replace(config, run_dir=tmp_path / "whole"), quiet)
    parts = replace(config, run_dir=tmp_path / "parts")
    for resume, rounds in ((False, 1), (True, 2)):
        with pytest.raises(KeyboardInterrupt):
            search(parts, Interrupter(rounds), resume=resume)
    assert not (parts.run_dir / "final").exists()
    np.random.default_rng(0)
    np.random.seed(99)  # noqa: NPY002 - what cma draws from must not depend on what happened before
    search(parts, quiet, resume=True)
    assert result(parts.run_dir) == result(whole)
    assert len((parts.run_dir / ROUNDS_FILE).read_text().splitlines()) == 1 + 4


@pytest.mark.parametrize("name", SEARCHES)
def test_resume_needs_only_the_folder(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, search = SEARCHES[name]
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        search(replace(config, run_dir=folder, seed=7), Interrupter(2))
    command = [name, "--resume", "--run-dir", str(folder), "--workers", "1"]
    assert agents.cli.main([*command, "--seed", "8"]) == 2
    assert f"resume: seed: expected 7 as in {folder}/config.json, got 8" in capsys.readouterr().err
    more = {"evolve": "--generations", "mixture": "--updates"}[name]
    assert agents.cli.main([*command, more, "1"]) == 2
    assert "s: expected at least the 2 that are finished, got 1" in capsys.readouterr().err
    assert agents.cli.main(command) == 0
    whole = search(replace(config, run_dir=tmp_path / "whole", seed=7), quiet)
    assert result(folder) == result(whole)


@pytest.mark.parametrize("name", SEARCHES)
def test_ctrl_c_says_how_to_go_on(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before the first round is finished."""

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    module = {"evolve": "evolution", "mixture": "static_mixture"}[name]
    monkeypatch.setattr(f"agents.learning.search.{module}.run_tasks", interrupted)
    folder = tmp_path / "run"
    small = ["--generations", "1"] if name == "evolve" else ["--updates", "1", "--requests", "12", "--pairs", "1"]
    if name == "evolve":
        recipe = tmp_path / "recipe.yml"
        recipe.write_text("{requests: 30, population: 4, rates: [1.0]}")
        small += ["--recipe", str(recipe)]
    assert agents.cli.main([name, "--run-dir", str(folder), "--workers", "1", *small]) == 130
    assert f"llmsched {name} --resume --run-dir {folder} goes on" in capsys.readouterr().out
    monkeypatch.undo()
    assert agents.cli.main([name, "--run-dir", str(folder), "--workers", "1", "--resume"]) == 0


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the second round of a folder."""
    lines = (folder / ROUNDS_FILE).read_text().splitlines()
    cell = json.loads(lines[2])
    change(cell)
    (folder / ROUNDS_FILE).write_text("\n".join([*lines[:2], json.dumps(cell), *lines[3:]]) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda cell: cell["numbers"].pop(),
        lambda cell: cell.update(numbers=["x"] * len(cell["numbers"])),
        lambda cell: cell.update(numbers=3),
        lambda cell: cell["numbers"].__setitem__(0, float("inf")),
        lambda cell: cell.update(round="1"),
        lambda cell: cell.update(row=[]),
        lambda cell: cell.pop("row"),
        lambda cell: cell.update(config_hash="0"),
    ],
)
def test_damaged_rounds_are_run_again(
    change: Callable[[dict[str, Any]], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(MIXTURE, run_dir=tmp_path / "run", updates=3)
    before = result(learn_mixture(config, quiet))
    edit(config.run_dir, change)
    learn_mixture(config, quiet, resume=True)
    assert "their cells are run again" in capsys.readouterr().err
    assert result(config.run_dir) == before


def test_a_search_that_does_not_repeat_is_refused(tmp_path: Path) -> None:
    config = replace(EVOLUTION, run_dir=tmp_path / "run", generations=2)
    evolve(config, quiet)
    edit(config.run_dir, lambda cell: cell["numbers"].__setitem__(-1, 1.0))
    with pytest.raises(InputError, match="the search does not repeat here"):
        evolve(replace(config, generations=3), quiet, resume=True)


def test_nothing_to_resume_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in SEARCHES:
        assert agents.cli.main([name, "--resume", "--run-dir", str(tmp_path / "none")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "config.json" in error
