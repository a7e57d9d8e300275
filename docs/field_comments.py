"""What the guide tells of fields whose meaning stands in a comment behind them: entries of records, NamedTuples.

An extension of griffe, which reads the sources for the pages of the API (see mkdocs.yml).
"""

import ast
import tokenize
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import griffe


class Field(NamedTuple):
    """One field of a record."""

    name: str
    kind: str  # as the source has it: "f8", or a record of its own, and a shape
    about: str  # the comment behind it


def text(comment: str) -> str:
    """What a comment says, as Markdown: its brackets are those of arrays, not of links."""
    return comment.lstrip("# ").replace("[", "\\[").replace("|", "&#124;")


@cache
def comments(file: Path) -> dict[int, str]:
    """The comments of a source file by line."""
    with tokenize.open(file) as lines:
        tokens = tokenize.generate_tokens(lines.readline)
        return {token.start[0]: text(token.string) for token in tokens if token.type == tokenize.COMMENT}


def fields(value: ast.expr | None, notes: dict[int, str]) -> list[Field]:
    """The fields that a dtype names one by one; none for any other value.

    Args:
        value: what is assigned, such as ``np.dtype([("now", "f8")])``.
        notes: the comments of its file by line.
    """
    if not isinstance(value, ast.Call) or ast.unparse(value.func) != "np.dtype":
        return []
    lists = [node for node in ast.walk(value.args[0]) if isinstance(node, ast.List)]
    entries = lists[0].elts if lists else []
    found = []
    for entry in entries:
        if not isinstance(entry, ast.Tuple):
            return []
        name, *kind = (ast.unparse(part).strip("'") for part in entry.elts)
        found.append(Field(name, " ".join(kind), notes.get(entry.end_lineno or 0, "")))
    return found


def assigned(file: Path, name: str) -> list[Field]:
    """The fields of the record that a module calls `name`."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return fields(node.value, comments(file))
    return []


def table(found: list[Field]) -> str:
    """Fields as a table of Markdown."""
    lines = [f"| `{name}` | `{kind}` | {about} |" for name, kind, about in found]
    return "\n".join(["| field | type | |", "|---|---|---|", *lines])


class FieldComments(griffe.Extension):
    """Takes comments behind fields for their docstrings, and tells the fields of every record."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Fill in what the docstring of an attribute lacks."""
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(attr.filepath, Path):
            return
        notes = comments(attr.filepath)
        told = attr.docstring.value if attr.docstring else ""
        if found := fields(node.value, notes):
            told = f"{told}\n\n{table(found)}"
            attr.value = "np.dtype(...)"
        elif not told and isinstance(attr.parent, griffe.Class):
            told = notes.get(node.end_lineno or 0, "")
        if told:
            attr.docstring = griffe.Docstring(told, lineno=node.lineno, parent=attr)
