"""The README's Python blocks run as they stand, and the commands it names exist."""

import re
from pathlib import Path

import pytest

from agents.cli import commands, main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


MINE = next(block for block in BLOCKS if block.startswith("# mine.py"))
COMMANDS = re.findall(r"^(llmsched [^#\n]*mine\.py[^#\n]*)", README, re.MULTILINE)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the reader has saved mine.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0] for block in BLOCKS])
def test_python_block_runs(block: str, here: Path) -> None:
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_commands_for_a_policy_of_ones_own_run(here: Path) -> None:
    assert [command.split()[1] for command in COMMANDS] == ["simulate", "evaluate", "tune"]
    for command in COMMANDS:
        assert main(command.split()[1:]) == 0
    assert (here / "out/mine.html").is_file()
    assert (
        main(["simulate", "--policy", "mine.py:OneAtATime:tuned=mine.json", "--rate", "0.1", "--num-requests", "20"])
        == 0
    )


def test_every_command_named_exists() -> None:
    named = set(re.findall(r"(?:`|bin/)llmsched ([a-z]+)", README)) - {"command"}
    assert named
    assert named <= set(commands())


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
