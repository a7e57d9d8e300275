"""README and guide: their code runs, their commands parse, their files and links exist, the map has every room.

In README, docs/index.md and docs/guide/ the blocks of a page run one after the other in one folder: python as it
stands, and of shell the lines that begin with `llmsched`. A block whose first line is `# NAME.EXT` is saved under that
name. `<!-- not run: WHY -->` before a block leaves it out; its commands must parse all the same, as those on the pages
of results.
"""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import tyro

from agents.cli import commands, main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDE = [README, ROOT / "docs/index.md", *sorted((ROOT / "docs/guide").glob("*.md"))]
RESULTS = sorted((ROOT / "docs/results").glob("*.md"))
PAGES = [*GUIDE, *RESULTS, *sorted((ROOT / "docs").glob("*.md"))]
PACKAGES = ("engine", "baselines", "llmsched_env", "agents")

BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SAVED = re.compile(r"# ([\w-]+\.\w+)\n")
FILE = re.compile(r"`((?:engine|baselines|llmsched_env|agents|tests|docs|examples|scripts)/[\w./-]*)`")
MODULE = re.compile(r"python3? (?:-m ([\w.]+)|([\w./-]+\.py))")


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    is_run: bool


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(language, text, not skipped) for skipped, language, text in found]


def lines(block: Block) -> list[list[str]]:
    """The commands of a shell block, in words."""
    joined = block.text.replace("\\\n", "").splitlines()
    return [words for line in joined if (words := shlex.split(line, comments=True))]


def named_commands(page: Path) -> Iterator[list[str]]:
    """Every `llmsched` command of a page that is written out, without that word."""
    for block in blocks(page):
        if block.language == "sh":
            yield from (words[1:] for words in lines(block) if words[0] == "llmsched")
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for code in re.findall(r"`llmsched ([^`]+)`", prose):
        yield code.split()


def name(page: Path) -> str:
    """A page, for messages."""
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in GUIDE if blocks(page)], ids=name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "guide"}
    for block in blocks(page):
        if saved := SAVED.match(block.text):
            (tmp_path / saved[1]).write_text(block.text.removeprefix(saved[0]), encoding="utf-8")
        if block.is_run and block.language == "python":
            exec(compile(block.text, name(page), "exec"), names)
        elif block.is_run and block.language == "sh":
            for words in lines(block):
                assert words[0] != "llmsched" or main(words[1:]) == 0, words


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_of_a_page_parse(page: Path) -> None:
    for command, *options in named_commands(page):
        if command == "COMMAND":
            continue
        assert command in commands(), command
        if options and "--help" not in options and "..." not in options:
            tyro.cli(import_module(f"agents.commands.{command}").Command, args=options)


@pytest.mark.parametrize("page", [page for page in RESULTS if page.stem != "index"], ids=name)
def test_a_page_of_results_begins_with_a_command(page: Path) -> None:
    first = next(block for block in blocks(page))
    assert first.language == "sh"
    assert lines(first)[0][0] in ("llmsched", "make", "python", "python3")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in FILE.findall(text):
        assert list(ROOT.glob(path)), path
    for module, script in MODULE.findall(text):
        assert (ROOT / script).is_file() if script else importlib.util.find_spec(module), module or script


@pytest.mark.parametrize("page", [page for page in PAGES if page != README], ids=name)
def test_code_is_not_wider_than_the_page(page: Path) -> None:
    assert [line for block in blocks(page) for line in block.text.splitlines() if len(line) > 92] == []


def is_there(dotted: str) -> bool:
    """Whether a dotted name is a module, or something that its module mentions; read from the sources."""
    parts = dotted.split(".")
    for k in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:k])
        file = next((f for f in (folder.with_suffix(".py"), folder / "__init__.py") if f.is_file()), None)
        if file:
            return k == len(parts) or re.search(rf"\b{parts[k]}\b", file.read_text(encoding="utf-8")) is not None
    return False


def test_names_that_pages_and_sources_mention_exist() -> None:
    sources = [file for package in (*PACKAGES, "docs", "examples") for file in sorted((ROOT / package).rglob("*.py"))]
    assert [
        (name(file), found)
        for file in (*PAGES, *sources)
        for found in re.findall(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)`", file.read_text(encoding="utf-8"))
        if not is_there(found)
    ] == []


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130


def test_the_map_of_the_readme_has_every_room() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    told = {package: re.findall(r"`([\w/]+)`", rooms) for package, rooms in rows if package in PACKAGES}
    found = {
        package: sorted(
            file.parent.relative_to(ROOT / package).as_posix() for file in (ROOT / package).rglob("*/__init__.py")
        )
        for package in PACKAGES
    }
    assert {package: sorted(rooms) for package, rooms in told.items()} == found


def test_every_room_says_what_it_is() -> None:
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            assert file.read_text(encoding="utf-8").startswith('"""'), name(file)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "@@" not in text
    assert "TODO" not in text
