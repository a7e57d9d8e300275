"""Tables in every width: no number is cut, no line is wider than the terminal, what is left out is said."""

import io
import itertools
import random
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from agents.reporting.grid import UNLIMITED, Grid, Head, Part, show

WIDTHS = (20, 40, 60, 80, 100, 140, 200)
NUMBER = re.compile(r"[-+]?\d[\d.]*%?")
HEADS = (
    Head("policy", "name"),
    Head("TTFT median, s"),
    Head("goodput, req/s"),
    Head("gain", "number", 1),
    *(Head(f"figure {k}, ms", "number", 2 + k) for k in range(6)),
    Head("verdict", "prose"),
)
NAMES = [
    "sarathi",
    "slai:token_budget=1024,offset=3,order=spf",
    "runs/" + "averylongfoldername" * 6 + "/final",
    "größe/日本語/политика",
    "run[bold]red[/bold]:smile:",
]


def _number(draw: random.Random) -> str:
    return f"{draw.uniform(-1, 1) * 10 ** draw.randint(-2, 4):.3f}"


def _row(draw: random.Random, name: str) -> tuple[str, ...]:
    low, mean, high = (_number(draw) for _ in range(3))
    gain = f"{mean} ({draw.uniform(-1, 1):+.0%}) [{low}, {high}]"
    return name, _number(draw), _number(draw), gain, *(_number(draw) for _ in range(6)), "saturated"


def _grid(seed: int = 0, policies: int = 25) -> Grid:
    draw = random.Random(seed)
    parts = [
        Part([_row(draw, f"{NAMES[k % len(NAMES)]}") for k in range(policies)], f"{load} requests per second")
        for load in (1, 2)
    ]
    return Grid(HEADS, parts, "what the figures mean, in a sentence that is longer than narrow terminals are wide")


def _shown(grid: Grid, width: int, wide: bool = False, **options: object) -> str:
    out = io.StringIO()
    show(grid, Console(file=out, width=width, **options), wide)  # type: ignore[arg-type]
    return out.getvalue()


def _numbers(text: str) -> list[str]:
    return sorted(NUMBER.findall(text))


def _expected(grid: Grid, titles: set[str]) -> list[str]:
    shown = [k for k, head in enumerate(grid.heads) if head.title.partition(",")[0] in titles and head.kind == "number"]
    return sorted(n for part in grid.parts for row in part.rows for k in shown for n in NUMBER.findall(str(row[k])))


def _left_out(text: str) -> set[str]:
    note = re.search(r"Left out for want of room: (.*?)\. --wide", " ".join(text.split()))
    return set(note.group(1).split(", ")) if note else set()


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("width", [*WIDTHS, UNLIMITED])
def test_every_number_of_a_shown_column_is_whole(width: int, wide: bool) -> None:
    """Each number of the rows appears as often as the rows hold it, and nothing else does."""
    names = Grid(HEADS, [Part([(f"p{'x' * 40}", *row[1:]) for row in part.rows]) for part in _grid().parts])
    text = _shown(names, width, wide)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    left_out = _left_out(text)
    assert not (wide and left_out)
    titles = {head.title.partition(",")[0] for head in HEADS} - left_out
    assert {"TTFT median", "goodput"} <= titles
    body = re.sub(r"figure\s+\d", "figure", text.partition("Left out")[0])
    assert _numbers(re.sub(r"p99", "", body)) == _expected(names, titles)
    assert "…" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal_and_long_names_wrap(width: int) -> None:
    text = _shown(_grid(), width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    joined = "".join(text.split())
    if width < 80:  # blocks, or one column: the pieces of a name follow each other
        return
    for piece in ("slai:", "token_", "offset=3", "run[bold]red[/", "smile:"):
        assert piece in joined, "names are no markup"


def test_columns_are_left_out_in_the_stated_order() -> None:
    kept: list[set[str]] = []
    for width in range(200, 60, -5):
        left_out = _left_out(_shown(_grid(), width))
        orders = [head.order for head in HEADS if head.title.partition(",")[0] in left_out]
        assert 0 not in orders
        assert orders == sorted(head.order for head in HEADS if head.order)[len(HEADS) - 4 - len(orders) :]
        kept.append(left_out)
    assert all(a <= b for a, b in itertools.pairwise(kept)), "the narrower, the fewer"
    assert kept[0] < kept[-1]


def test_what_is_no_terminal_gets_everything_in_one_line_without_colour() -> None:
    text = _shown(_grid(), UNLIMITED)
    for part in _grid().parts:
        for row in part.rows:
            (line,) = {line for line in text.splitlines() if str(row[3]) in line}
            assert all(str(cell) in line for cell in row)
    assert "\x1b" not in text
    assert "Left out" not in text


def test_the_same_columns_are_equally_wide_in_every_part() -> None:
    lines = _shown(_grid(), 100).splitlines()
    rules = {line for line in lines if set(line) == {"─"}}
    assert len(rules) == 1


@pytest.mark.parametrize("width", [30, 80, UNLIMITED])
def test_ascii_terminals_get_ascii(width: int) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    draw = random.Random(1)
    show(Grid(HEADS, [Part([_row(draw, "sarathi")])]), Console(file=file, width=width))
    file.flush()
    assert b"sarathi" in raw.getvalue()


def test_no_rows_and_empty_cells() -> None:
    assert "policy" in _shown(Grid(HEADS, [Part([])]), 200)
    assert _shown(Grid((Head("a", "name"), Head("b")), [Part([("", "")])]), 20)


def test_small_tables_stay_together_where_they_fit() -> None:
    grid = Grid((Head("batches", "name"), Head("points"), Head("p95")), [Part([("mixed", "12", "3.4")], "errors")])
    for width in (20, 40, 80):
        assert "mixed" in next(line for line in _shown(grid, width).splitlines() if "3.4" in line)
