"""The shape of the code in numbers, and limits that it may not outgrow: `python scripts/measures.py`.

Complexity is McCabe's as `lizard` counts it (branches, loops, handlers, boolean operators, conditional expressions and
comprehensions). A circle is a set of modules that import each other, imports inside functions counted, those for type
checkers not. A limit that has become loose is lowered here, so that what was won stays won.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import mean

import lizard

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "baselines", "llmsched_env", "agents")

LIMITS = {
    "most arguments of a function": 7.0,
    "function lines, 90th percentile": 20.0,
    "function lines, most": 60.0,
    "file lines, most": 350.0,
    "functions with complexity above 10": 13.0,
    "complexity, mean": 3.42,
    "modules in import circles": 0.0,
    "parameters annotated Any": 64.0,
}
"""What a measure may be at most."""

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Found:
    """One measure of one place: of a function, a file or a module."""

    value: float
    place: str


def functions(tree: ast.AST) -> Iterator[FunctionNode]:
    """Every function and method of a source file, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, FunctionNode))


def parameters(function: FunctionNode) -> list[ast.arg]:
    """The named parameters of a function."""
    given = function.args
    return [*given.posonlyargs, *given.args, *given.kwonlyargs]


def shape(file: str, text: str) -> dict[str, list[Found]]:
    """Arguments, lines, complexity and parameters annotated Any of every function of a file."""
    found: dict[str, list[Found]] = {"arguments": [], "lines": [], "complexity": [], "any": []}
    for node in functions(ast.parse(text)):
        place, names = f"{file}:{node.lineno} {node.name}", parameters(node)
        found["arguments"].append(Found(len(names), place))
        found["lines"].append(Found((node.end_lineno or node.lineno) - node.lineno + 1, place))
        untyped = sum(arg.annotation is not None and ast.unparse(arg.annotation) == "Any" for arg in names)
        found["any"].append(Found(untyped, place))
    for one in lizard.analyze_file.analyze_source_code(file, text).function_list:
        found["complexity"].append(Found(one.cyclomatic_complexity, f"{file}:{one.start_line} {one.name}"))
    return found


def imports(text: str, modules: set[str]) -> set[str]:
    """Modules of ours that a source file imports, in functions too, but not for type checkers only."""
    found: set[str] = set()
    for node in _runs(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= inside or {node.module}
    return found & modules


def _runs(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for child in node.orelse if isinstance(node, ast.If) and typing_only else ast.iter_child_nodes(node):
        yield from _runs(child)


def in_circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that reach themselves along imports, each circle as one line."""
    left, circles = {name: set(to) for name, to in graph.items()}, []
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            circle = error.args[1][:-1]
            circles.append(" -> ".join(circle))
            for name in circle:
                left[name] -= set(circle)
        else:
            return circles


def module_name(file: str) -> str:
    """The module that a source file is, as imports name it."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def measure(sources: dict[str, str]) -> dict[str, list[Found]]:
    """Every measure, each with its places, the worst first.

    Args:
        sources: text of every file by its path from the root.
    """
    shapes = [shape(file, text) for file, text in sources.items()]
    found = {key: [one for each in shapes for one in each[key]] for key in ("arguments", "lines", "complexity", "any")}
    found["files"] = [Found(text.count("\n"), file) for file, text in sources.items()]
    modules = {module_name(file): text for file, text in sources.items()}
    graph = {name: imports(text, set(modules)) - {name} for name, text in modules.items()}
    found["circles"] = [Found(circle.count(" -> ") + 1, circle) for circle in in_circles(graph)]
    return {key: sorted(values, key=lambda one: (-one.value, one.place)) for key, values in found.items()}


def summary(found: dict[str, list[Found]]) -> dict[str, float]:
    """The measures that have a limit, by its name."""
    lines = [one.value for one in found["lines"]]
    complexity = [one.value for one in found["complexity"]]
    return {
        "most arguments of a function": found["arguments"][0].value,
        "function lines, 90th percentile": lines[len(lines) // 10],
        "function lines, most": lines[0],
        "file lines, most": found["files"][0].value,
        "functions with complexity above 10": float(sum(value > 10 for value in complexity)),
        "complexity, mean": round(mean(complexity), 2),
        "modules in import circles": float(sum(one.value for one in found["circles"])),
        "parameters annotated Any": float(sum(one.value for one in found["any"])),
    }


def overgrown(numbers: dict[str, float]) -> list[str]:
    """A line for each measure above its limit."""
    return [f"{name}: expected at most {LIMITS[name]:g}, got {n:g}" for name, n in numbers.items() if n > LIMITS[name]]


def read(under: str = "") -> dict[str, str]:
    """The source files of the packages whose path begins with `under`."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    named = {file.relative_to(ROOT).as_posix(): file for file in files}
    return {name: file.read_text(encoding="utf-8") for name, file in named.items() if name.startswith(under)}


def main() -> None:
    """Print the measures and their worst places; exit code 1 if one has outgrown its limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="show the N worst places of each measure")
    parser.add_argument("--under", default="", metavar="PATH", help="only files whose path begins so, without limits")
    arguments = parser.parse_args()
    found = measure(read(arguments.under))
    numbers = summary(found)
    for name, number in numbers.items():
        print(f"{name:36} {number:8g}   at most {LIMITS[name]:g}")
    for key, places in found.items() if arguments.worst else ():
        print(f"\n{key}")
        for one in places[: arguments.worst]:
            print(f"{one.value:6g}  {one.place}")
    if faults := [] if arguments.under else overgrown(numbers):
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
