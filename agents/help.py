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


class Box(NamedTuple):
    """One group of options as tyro draws it."""

    title: str
    lines: list[str]

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
    for line in lines[:first]:
        yield from textwrap.wrap(line, width) or [""]
    further = []
    for box in _boxes(lines[first:]):
        if everything or box.title in OWN:
            yield from box.lines
        else:
            further += textwrap.wrap(_short(box), width, subsequent_indent="    ")
    if further:
        yield from ["", *further, *textwrap.wrap(f"llmsched {name} {ALL} lists these, too.", width)]


def _short(box: Box) -> str:
    """A group of options in a line."""
    about = f": {box.about}" if box.about else ""
    return f"--{box.title.removesuffix(' options')}.*{about}."
