"""The README's Python blocks run as they stand, and the commands it names exist."""

import re
from pathlib import Path

import pytest

from agents.cli import commands

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0] for block in BLOCKS])
def test_python_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_every_command_named_exists() -> None:
    named = set(re.findall(r"(?:`|bin/)llmsched ([a-z]+)", README)) - {"command"}
    assert named
    assert named <= set(commands())


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
