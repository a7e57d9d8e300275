"""`llmsched COMMAND --help`: the command's own options, a line for each further group; --help-all shows those whole."""

import contextlib
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple

ALL = "--help-all"
"""Flag that every command takes: every option of every group."""
OWN = ("options", "positional arguments")
"""Groups that are always shown."""
_ASCII = str.maketrans({"─": "-", "│": "|", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "…": "..."})


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _filled(lines: list[str], width: int) -> Iterator[str]:
    """Texts of options in whole lines: the parser breaks them where the source of their docstring does.

    Args:
        lines: what is in a box; a text stands behind an option or below it, further to the right.
        width: of the box inside.
    """
    at = 0
    while at < len(lines):
        head, at = lines[at], at + 1
        column = _indent(lines[at]) if at < len(lines) else 0
        if column <= _indent(head):
            yield head
            continue
        end = next((k for k in range(at, len(lines)) if _indent(lines[k]) != column), len(lines))
        yield from _text(head, [line.strip() for line in lines[at:end]], column, width)
        at = end


def _text(head: str, below: list[str], column: int, width: int) -> Iterator[str]:
    """An option with its text, which begins beside it if there is room."""
    is_beside = head[column - 2 : column] == "  " and head[column : column + 1].strip() != ""
    words = " ".join([head[column:], *below] if is_beside else below)
    text = textwrap.wrap(words, max(20, width - column), break_long_words=False, break_on_hyphens=False)
    yield head[:column] + text.pop(0) if is_beside else head
    yield from (" " * column + line for line in text)


class Box(NamedTuple):
    """One group of options as tyro draws it."""

    title: str
    lines: list[str]

    def drawn(self) -> Iterator[str]:
        """Its lines, the texts in it filled."""
        width = len(self.lines[0]) - 4
        yield self.lines[0]
        yield from (
            f"│ {line:<{width}} │" for line in _filled([line[2:-2].rstrip() for line in self.lines[1:-1]], width)
        )
        yield self.lines[-1]

    @property
    def about(self) -> str:
        """What the group is, a sentence."""
        text = [line.strip("│ ") for line in self.lines[1:-1]]
        rule = next((k for k, line in enumerate(text) if set(line) == {"─"}), 0)
        return re.split(r"(?<=[.;])\s", " ".join(text[:rule]), maxsplit=1)[0].rstrip(".;")


def print_help(name: str, parse: Callable[[], object], everything: bool) -> None:
    """Print what the parser says about a command.

    Args:
        name: of the command.
        parse: parses `--help`; prints and leaves.
        everything: every group of options.
    """
    # The parser leaves boxes out where it believes that they cannot be shown.
    caught = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(caught):
        parse()
    caught.seek(0)
    width = max(20, min(shutil.get_terminal_size().columns, 120))
    text = "\n".join(_lines(name, caught.read(), width, everything))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode("ascii", "replace").decode()
    print(text)


def _boxes(lines: list[str]) -> Iterator[Box]:
    for line in lines:
        if line.startswith("╭"):
            title, found = line.strip("╭╮─ "), []
        found.append(line)
        if line.startswith("╰"):
            yield Box(title, found)


def _lines(name: str, text: str, width: int, everything: bool) -> Iterator[str]:
    lines = text.rstrip().splitlines()
    first = next((k for k, line in enumerate(lines) if line.startswith("╭")), len(lines))
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines[:first]).strip()):
        yield from [*textwrap.wrap(" ".join(paragraph.split()), width), ""]
    further = []
    for box in _boxes(lines[first:]):
        if everything or box.title in OWN:
            yield from box.drawn()
        else:
            further += textwrap.wrap(_short(box), width, subsequent_indent="    ")
    if further:
        yield from ["", *further, *textwrap.wrap(f"llmsched {name} {ALL} lists these, too.", width)]


def _short(box: Box) -> str:
    """A group of options in a line."""
    about = f": {box.about}" if box.about else ""
    return f"--{box.title.removesuffix(' options')}.*{about}."
