"""YAML of people, read as data only: the safe subset, with the numbers that people mean.

Differences from PyYAML's safe loader: ``3e-4`` and ``1e6`` are numbers as in YAML 1.2 (in 1.1 they are strings),
``1:30`` and ``010`` are not (in 1.1 they are 90 and 8), dates stay strings, keys are names and each comes once, and
what aliases stand for is counted, so that a few lines cannot mean a billion entries.
"""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import InputError
from engine.files.reading import MAX_DEPTH, MAX_DIGITS, check_depth, read_text

if TYPE_CHECKING:
    from yaml import MappingNode, Node, SafeLoader, ScalarNode, SequenceNode, YAMLError

LARGEST = 256 * 1024
"""Bytes of a YAML file."""
MAX_NODES = 50_000
"""Entries of a YAML file, each alias counted as what it stands for."""

_PREFIX = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
    re.ASCII,
)
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+", re.ASCII)


def _number_tag(text: str) -> str | None:
    if len(text) > MAX_DIGITS:
        return "str"
    if _INT.fullmatch(text):
        return "int"
    return "float" if _FLOAT.fullmatch(text) and not _LEADING_ZERO.fullmatch(text) else None


@cache
def _loader() -> Any:
    """The loader class; made once, for `yaml` loads only when it is needed."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe loader with the numbers of YAML 1.2, checked nodes and no tags but those of plain data."""

        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [
                (tag, regexp) for tag, regexp in found if tag in (_PREFIX + "bool", _PREFIX + "null", _PREFIX + "merge")
            ]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        yaml_constructors = {
            _PREFIX + name: yaml.SafeLoader.yaml_constructors[_PREFIX + name]
            for name in ("null", "bool", "str", "seq", "map")
        } | {None: yaml.SafeLoader.yaml_constructors[None]}

        def resolve(self, kind: type[Node], value: str, implicit: tuple[bool, bool]) -> Any:
            tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
            if kind is yaml.ScalarNode and implicit[0] and tag == _PREFIX + "str":
                number = _number_tag(value)
                return _PREFIX + number if number else tag
            return tag

    def fail(node: Node, message: str) -> Any:
        raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)

    def whole(loader: SafeLoader, node: ScalarNode) -> int:
        text = loader.construct_scalar(node)
        try:
            return int(text, 0)
        except ValueError:
            return int(fail(node, f"expected a whole number, got {text[:40]!r}"))

    def real(loader: SafeLoader, node: ScalarNode) -> float:
        text = loader.construct_scalar(node)
        try:
            return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
        except ValueError:
            return float(fail(node, f"expected a number, got {text[:40]!r}"))

    Loader.add_constructor(_PREFIX + "int", whole)
    Loader.add_constructor(_PREFIX + "float", real)
    return Loader


def read_yaml(path: str | Path, what: str) -> Any:
    """The value in a YAML file.

    Raises:
        InputError: as `engine.files.reading.read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path, what, LARGEST), path)


def parse_yaml(text: str, where: str | Path) -> Any:
    """The value of a YAML text with one document: dictionaries with names as keys, lists, strings, numbers, None.

    Raises:
        InputError: not YAML, a tag that is not plain data, a key twice or not a name, an infinite or endless number,
            more than `MAX_DEPTH` levels or `MAX_NODES` entries; names the line.
    """
    import yaml

    try:
        loader = _loader()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, where)
        data = loader.construct_document(node)
    except yaml.YAMLError as error:
        line, problem = _place(error)
        raise InputError(f"{where}{line}: expected YAML, got something else ({problem})") from None
    except RecursionError:
        raise InputError(f"{where}: expected at most {MAX_DEPTH} levels inside each other, got more") from None
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # PyYAML's, for `!!bool 7` and the like
        raise InputError(f"{where}: expected YAML, got a value that does not fit its tag ({error})") from None
    check_depth(data, where)
    return data


def _place(error: YAMLError) -> tuple[str, str]:
    """The line that PyYAML complains about, where it names one, and its complaint."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    complaint = getattr(error, "problem", None) or getattr(error, "context", None) or str(error).splitlines()[0]
    return f", line {mark.line + 1}" if mark else "", complaint


def _check_node(node: ScalarNode | SequenceNode | MappingNode, where: str | Path) -> None:
    """Check the tree below a node before anything is built from it: its size with aliases, keys, numbers."""
    sizes: dict[int, int] = {}
    _size(node, where, sizes, 0)
    if sizes[id(node)] > MAX_NODES:
        raise InputError(
            f"{where}: expected at most {MAX_NODES} entries, aliases counted as what they stand for, got more"
        )


def _size(node: ScalarNode | SequenceNode | MappingNode, where: str | Path, sizes: dict[int, int], depth: int) -> int:
    """Entries below a node; each node is looked at once."""
    known = sizes.get(id(node))
    if known is not None:
        if known < 0:
            raise InputError(
                f"{where}, line {node.start_mark.line + 1}: expected a finite tree, got an alias of itself"
            )
        return known
    if depth > MAX_DEPTH:
        raise InputError(f"{where}: expected at most {MAX_DEPTH} levels inside each other, got more")
    sizes[id(node)] = -1
    children: list[Any] = []
    if node.id == "mapping":
        _check_keys(node, where)
        children = [part for pair in node.value for part in pair]
    elif node.id == "sequence":
        children = node.value
    else:
        _check_scalar(node, where)
    total = 1 + sum(_size(child, where, sizes, depth + 1) for child in children)
    sizes[id(node)] = min(total, 2**40)
    return total


def _check_keys(node: Node, where: str | Path) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        at = f"{where}, line {key.start_mark.line + 1}"
        if key.id != "scalar" or key.tag not in (_PREFIX + "str", _PREFIX + "merge"):
            got = repr(key.value[:40]) if key.id == "scalar" else f"a {key.id}"
            raise InputError(f"{at}: expected a name as key, got {got}")
        if key.value in seen:
            raise InputError(f"{at}: expected each key once, got {key.value[:60]!r} twice")
        seen.add(key.value)


def _check_scalar(node: Node, where: str | Path) -> None:
    at = f"{where}, line {node.start_mark.line + 1}"
    if node.tag not in (_PREFIX + "float", _PREFIX + "int"):
        return
    if len(node.value) > MAX_DIGITS:
        raise InputError(f"{at}: expected numbers of at most {MAX_DIGITS} digits, got one of {len(node.value)}")
    if node.tag == _PREFIX + "float" and not _is_finite(node.value.lower()):
        raise InputError(f"{at}: expected finite numbers, got {node.value[:20]!r}")


def _is_finite(text: str) -> bool:
    """Whether a number is; what is none is told where it is converted."""
    if text.endswith((".inf", ".nan")):
        return False
    try:
        return math.isfinite(float(text))
    except ValueError:
        return True
