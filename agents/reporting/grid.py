"""Tables that fit the terminal, for every command: no number is ever cut, long names wrap.

What has no room is left out in a stated order, and a line below says what. Where even the columns that always stand do
not fit side by side, each row becomes a block of its own. What is not a terminal has room for everything.
"""

import math
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rich.box import SIMPLE_HEAD, Box
from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.table import Table
from rich.text import Text

UNLIMITED = 100_000
"""Width of what is not a terminal: nothing has to be left out or broken."""
LEAST_NAME, LEAST_PROSE = 12, 16
"""Columns of text are not made narrower than this (or than their longest line)."""
GAP = 2
"""Blanks between columns."""
_ASCII_HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)

OUTCOME_STYLES = {"wins": "green", "ties": "", "loses": "red"}
"""Colours of what is said of a difference (`agents.evaluation.standing`)."""

Kind = Literal["number", "name", "prose"]
Cell = str | Text


class Head(NamedTuple):
    """A column of a table."""

    title: str
    kind: Kind = "number"
    """Numbers stay whole, names break behind punctuation or, if need be, anywhere, prose between words."""
    order: int = 0
    """0: always shown; of the others the highest is left out first."""


@dataclass(frozen=True)
class Part:
    """Rows under a title of their own."""

    rows: Sequence[Sequence[Cell]]
    title: str = ""
    ends: frozenset[int] = frozenset()
    """Rows with a free line below."""


@dataclass(frozen=True)
class Grid:
    """One table or several of the same columns, which then are equally wide in all of them."""

    heads: Sequence[Head]
    parts: Sequence[Part]
    caption: str = ""


def figure(value: float | None, form: str) -> str:
    """A number in a format such as ``.3f``, a dash where there is none (None, nan, infinite)."""
    return "-" if value is None or not math.isfinite(value) else format(value, form)


class _Terminal(Console):
    """A console whose reader may have seen enough, which `agents.cli` knows how to end."""

    def on_broken_pipe(self) -> None:
        """Let the error through: it is being handled."""
        raise


def terminal_console() -> Console:
    """The console that tables are printed on: as wide as the terminal, without limit where there is none."""
    console = _Terminal()
    if not console.is_terminal:
        return _Terminal(width=UNLIMITED)
    # Not rich's own measure: that takes 80 where TERM=dumb, and the width of stdin's terminal.
    if not sys.stdout.isatty():
        return console
    size = shutil.get_terminal_size()
    return _Terminal(width=max(1, size.columns), height=max(1, size.lines))


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are, brackets and all; empty ones are left out."""
    for line in filter(None, lines):
        console.print(Text(line))


def show(grid: Grid, console: Console, wide: bool = False) -> None:
    """Print a table in the width that there is.

    Args:
        grid: what to print.
        console: where.
        wide: leave nothing out; columns without room beside the others follow in a further table below.
    """
    columns = [_Column.of(k, grid, console.width) for k in range(len(grid.heads))]
    shown = columns if wide else _chosen(columns, console.width)
    for part in grid.parts:
        _print_part(part, shown, console, wide)
    if notes := _notes(grid.caption, [column.head for column in columns if column not in shown]):
        for note in notes:
            console.print(note)
        console.print()


def _notes(caption: str, left_out: Sequence[Head]) -> list[Text]:
    """What stands below a table: its caption, and which columns had no room."""
    notes = [Text(caption, style="italic")] if caption else []
    if left_out:
        titles = ", ".join(head.title.partition(", ")[0] for head in left_out)
        notes.append(Text(f"Left out for want of room: {titles}. --wide shows every column.", style="dim"))
    return notes


def _print_part(part: Part, shown: "Sequence[_Column]", console: Console, wide: bool) -> None:
    """One part of a table, in one piece, in several, or row by row."""
    if part.title:
        console.print(Text(part.title, style="bold"))
    groups = [shown] if _needed(shown) <= console.width else _stacked(shown, console.width) if wide else []
    for group in groups:
        console.print(_table(part, group, console))
        console.print()
    if not groups:
        _print_blocks(part, shown, console)


@dataclass(frozen=True)
class _Column:
    """A column and the room that it takes."""

    index: int
    head: Head
    least: int
    """Narrower, and something would be cut."""
    natural: int
    """Wider is of no use."""

    @classmethod
    def of(cls, index: int, grid: Grid, width: int) -> "_Column":
        head = grid.heads[index]
        cells = [_text(row[index]).plain for part in grid.parts for row in part.rows]
        natural = _longest([line for cell in cells for line in cell.split("\n")])
        title = _longest(_pieces(head.title, 1))
        return cls(index, head, max(min(natural, _least(head.kind, cells, width)), title), max(natural, title))


def _least(kind: Kind, cells: Sequence[str], width: int) -> int:
    """How narrow a column of such cells may become in a table of some width."""
    if kind == "number":
        return _longest([line for cell in cells for line in _broken(cell).split("\n")])
    if kind == "name":
        return max(LEAST_NAME, width // 4)
    return max(LEAST_PROSE, min(_longest([word for cell in cells for word in cell.split()]), width // 3))


def _text(cell: Cell) -> Text:
    """A cell as text: brackets and colons in names are no markup."""
    return cell if isinstance(cell, Text) else Text(cell)


def _longest(lines: Sequence[str]) -> int:
    return max((cell_len(line) for line in lines), default=0)


def _broken(cell: str) -> str:
    """A number with what stands beside it (relative change, interval) on lines of their own."""
    return re.sub(r" (?=[\[(])", "\n", cell)


_BREAKS = (r"[^\s]*\s*", r"[^,:/\s]*[,:/]*\s*", r"[^,:/=_\s-]*[,:/=_-]*\s*")
"""Pieces of a name that stay together: between blanks, if they are too long behind , : /, then behind = _ - too."""


def _pieces(name: str, width: int, level: int = 0) -> list[str]:
    """A name in pieces of at most this width where it has places to break."""
    found: list[str] = []
    for piece in re.findall(_BREAKS[level], name):
        long = cell_len(piece.rstrip()) > width and level + 1 < len(_BREAKS)
        found += _pieces(piece, width, level + 1) if long else [piece]
    return found


def folded(name: str, width: int) -> str:
    """A name in lines of at most this width."""
    lines = [""]
    for piece in _pieces(name, width):
        if cell_len(lines[-1]) + cell_len(piece.rstrip()) <= width:
            lines[-1] += piece
        elif cell_len(piece.rstrip()) <= width:
            lines.append(piece)
        else:
            lines[-1:] = chop_cells(lines[-1] + piece, width)
    return "\n".join(line.rstrip() for line in lines)


def _needed(columns: Sequence[_Column]) -> int:
    return sum(column.least for column in columns) + GAP * (len(columns) - 1)


def _chosen(columns: Sequence[_Column], width: int) -> list[_Column]:
    """The columns that have room, or those that always stand."""
    shown = list(columns)
    while _needed(shown) > width and any(column.head.order for column in shown):
        shown.remove(max(shown, key=lambda column: (column.head.order, column.index)))
    return shown


def _stacked(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """All columns in groups that fit, each behind the columns that name the row; none if one alone does not fit."""
    keys = [column for column in columns if column.head.kind == "name" and column.head.order == 0]
    groups = [list(keys)]
    for column in (column for column in columns if column not in keys):
        if _needed([*groups[-1], column]) > width:
            groups.append(list(keys))
        groups[-1].append(column)
    return groups if all(_needed(group) <= width for group in groups) else []


def _widths(columns: Sequence[_Column], width: int) -> list[int]:
    """How the room is shared: numbers in one line each first, then names, then prose."""
    widths = [column.least for column in columns]
    spare = width - _needed(columns)
    numbers = [k for k, column in enumerate(columns) if column.head.kind == "number"]
    more = sum(columns[k].natural - widths[k] for k in numbers)
    if more <= spare:
        spare -= more
        for k in numbers:
            widths[k] = columns[k].natural
    for kind in ("name", "prose"):
        spare = _widen(widths, columns, kind, spare)
    return widths


def _widen(widths: list[int], columns: Sequence[_Column], kind: Kind, spare: int) -> int:
    """Share room among the columns of a kind, always to the one that lacks most; returns what is left."""
    growing = [k for k, column in enumerate(columns) if column.head.kind == kind]
    while spare > 0 and (growing := [k for k in growing if widths[k] < columns[k].natural]):
        widths[max(growing, key=lambda k: columns[k].natural / widths[k])] += 1
        spare -= 1
    return spare


def _table(part: Part, columns: Sequence[_Column], console: Console) -> Table:
    box = _ASCII_HEAD if console.options.ascii_only else SIMPLE_HEAD
    table = Table(box=box, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    widths = _widths(columns, console.width)
    for column, width in zip(columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.head.kind == "number" else "left"
        title = folded(column.head.title, width)
        table.add_column(Text(title), width=width, justify=justify, vertical="top", overflow="fold")
    for number, row in enumerate(part.rows):
        cells = [_fitted(row[c.index], c.head.kind, width) for c, width in zip(columns, widths, strict=True)]
        table.add_row(*cells, end_section=number in part.ends)
    return table


def _fitted(cell: Cell, kind: Kind, width: int) -> Text:
    """A cell with line breaks of its own where it is wider than its column."""
    text = _text(cell)
    if kind == "prose" or _longest(text.plain.split("\n")) <= width:
        return text
    if kind == "number":
        return Text(_broken(text.plain), style=text.style)
    return Text("\n".join(folded(line, width) for line in text.plain.split("\n")), style=text.style)


def _print_blocks(part: Part, columns: Sequence[_Column], console: Console) -> None:
    """Each row as lines of title and value."""
    label = max(cell_len(column.head.title) for column in columns) + GAP
    for row in part.rows:
        for column in columns:
            console.print(_titled(column.head, _text(row[column.index]), label, console.width))
        console.print()


def _titled(head: Head, text: Text, label: int, width: int) -> Text:
    """A value beside its title, which takes `label` columns; below it where there is no room."""
    value = folded(" ".join(text.plain.split()), width) if head.kind == "name" else text.plain
    lines = value.split("\n")
    if len(lines) == 1 and label + cell_len(value) <= width:
        return Text(f"{head.title:<{label}}").append(value, text.style)
    indent = "  " if _longest(lines) + 2 <= width else ""
    below = "\n".join(indent + line for line in lines)
    return Text(folded(head.title, width) + "\n").append(below, text.style)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table for a page of documentation."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
