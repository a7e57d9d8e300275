"""The heap in a policy's memory, against a sorted list."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from baselines.families.heap import HEAP_COLUMNS, HEAP_KEY, TIE, put, take_out

AT = 2
SIZE = 24


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(-1, 4)), max_size=80))
def test_the_top_is_the_first_by_key_and_tie_whatever_was_put_moved_or_taken_out(moves: list[tuple[int, int]]) -> None:
    """A key of -1 takes the request out; any other puts it in, or moves it if it is in."""
    cells = np.zeros((SIZE, AT + HEAP_COLUMNS))
    n, inside = 0, dict[int, tuple[int, int]]()
    for i, key in moves:
        if key < 0:
            n = take_out(cells, AT, n, i)
            inside.pop(i, None)
        else:
            cells[i, AT + HEAP_KEY], cells[i, AT + TIE] = key, (7 * i) % SIZE
            n = put(cells, AT, n, i)
            inside[i] = (key, (7 * i) % SIZE)
        assert n == len(inside)
        assert n == 0 or int(cells[0, AT]) == min(inside, key=lambda j: inside[j])
    drained = []
    while n > 0:
        drained.append(int(cells[0, AT]))
        n = take_out(cells, AT, n, drained[-1])
    assert drained == sorted(inside, key=lambda j: inside[j])
