"""Named records in float64 cells: the same for kernels and for Python, and never beyond the memory."""

import numpy as np
import pytest

from engine.compiled.jit import hot
from engine.compiled.records import cells_of, record, records, series
from engine.errors import InputError

INNER = np.dtype([("number", "i8"), ("share", "f8")], align=True)
OUTER = np.dtype([("first", "f8"), ("nested", INNER)], align=True)
one, lines, chain = record(OUTER), records(OUTER), series(INNER, behind=OUTER)


@hot
def write_one(cells: np.ndarray) -> None:
    r = one(cells)
    r.first = 1.5
    r.nested.number = 7
    r.nested.share += 2.0


@hot
def write_lines(cells: np.ndarray) -> None:
    found = lines(cells)
    for k in range(found.shape[0]):
        found[k].first = k
        found.nested[k].number = 10 * k


@hot
def write_chain(cells: np.ndarray) -> int:
    found = chain(cells)
    for k in range(found.shape[0]):
        found[k].number, found[k].share = k, 0.5 * k
    return int(found.shape[0])


def test_a_record_has_as_many_cells_as_numbers() -> None:
    assert (cells_of(INNER), cells_of(OUTER)) == (2, 3)


def test_kernels_and_python_see_the_same_record() -> None:
    compiled, interpreted = np.ones(5), np.ones(5)
    write_one(compiled)
    write_one.py_func(interpreted)
    assert compiled.tobytes() == interpreted.tobytes()
    assert (one(compiled).first, one(compiled).nested.number, one(compiled).nested.share) == (1.5, 7, 3.0)
    assert compiled[3:].tolist() == [1.0, 1.0]


def test_kernels_and_python_see_the_same_lines() -> None:
    compiled, interpreted = np.ones((4, 6)), np.ones((4, 6))
    write_lines(compiled)
    write_lines.py_func(interpreted)
    assert compiled.tobytes() == interpreted.tobytes()
    assert lines(compiled).nested.number.tolist() == [0, 10, 20, 30]
    assert (compiled[:, 2:] == 1.0).all()


@pytest.mark.parametrize(("cells", "number"), [(3, 0), (4, 0), (5, 1), (8, 2)])
def test_a_series_has_as_many_records_as_there_is_room_for(cells: int, number: int) -> None:
    compiled, interpreted = np.ones(cells), np.ones(cells)
    assert write_chain(compiled) == write_chain.py_func(interpreted) == number
    assert compiled.tobytes() == interpreted.tobytes()
    assert chain(compiled).share.tolist() == [0.5 * k for k in range(number)]


@pytest.mark.parametrize("view", [write_one, write_one.py_func, write_chain, write_chain.py_func])
def test_too_few_cells_are_an_error(view: object) -> None:
    with pytest.raises(ValueError, match="needs more cells"):
        view(np.zeros(2))  # type: ignore[operator]


@pytest.mark.parametrize("kind", [[("a", "f4")], [("a", "i4")], [("shape", "f8")], [("a", "U2")]])
def test_other_fields_are_refused(kind: list[tuple[str, str]]) -> None:
    with pytest.raises(InputError, match=r"record: (field 'a': )?expected"):
        record(np.dtype(kind))
