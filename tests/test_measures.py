"""The measures find what they are named after, and growth is told (`make lint` measures the code)."""

from scripts import measures

BRANCHES = "def f(x):\n" + "".join(f"    if x == {k}:\n        return {k}\n" for k in range(11)) + "    return x\n"


def test_each_measure_sees_its_fault() -> None:
    sources = {
        "engine/one.py": "from typing import Any\ndef f(a: Any, b: int, *, c=0):\n    import engine.two\n",
        "engine/two.py": "from engine import one\nfrom engine.three import name\n" + BRANCHES,
        "engine/three.py": "import typing\n\nif typing.TYPE_CHECKING:\n    import engine.two\nname = 1\n",
    }
    numbers = measures.summary(measures.measure(sources))
    assert numbers["most arguments of a function"] == 3
    assert numbers["function lines, most"] == 24
    assert numbers["file lines, most"] == 26
    assert numbers["functions with complexity above 10"] == 1
    assert numbers["complexity, mean"] == 6.5
    assert numbers["modules in import circles"] == 2
    assert numbers["parameters annotated Any"] == 1


def test_growth_is_told_in_one_line_each() -> None:
    grown = {name: limit + 1.0 for name, limit in measures.LIMITS.items()}
    lines = measures.overgrown(grown)
    assert len(lines) == len(measures.LIMITS)
    assert lines[0] == "most arguments of a function: expected at most {:g}, got {:g}".format(
        measures.LIMITS["most arguments of a function"], grown["most arguments of a function"]
    )


def test_a_circle_of_three_and_one_of_two_are_both_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e", "a"}, "e": {"d"}, "f": {"a"}}
    assert sorted(line.count(" -> ") + 1 for line in measures.in_circles(graph)) == [2, 3]
