"""The heap in the memory of a policy, against a sorted list."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.compiled.records import cells_of, records
from engine.server.sorting import HEAP, SORTED, insert_sorted, put, take_out

SIZE = 24


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(-1, 4)), max_size=80))
def test_the_top_is_the_first_by_key_and_tie_whatever_was_put_moved_or_taken_out(moves: list[tuple[int, int]]) -> None:
    """A key of -1 takes the request out; any other puts it in, or moves it if it is in."""
    heap = records(HEAP)(np.zeros((SIZE, cells_of(HEAP))))
    n, inside = 0, dict[int, tuple[int, int]]()
    for i, key in moves:
        if key < 0:
            n = take_out(heap, n, i)
            inside.pop(i, None)
        else:
            heap[i].key, heap[i].tie = key, (7 * i) % SIZE
            n = put(heap, n, i)
            inside[i] = (key, (7 * i) % SIZE)
        assert n == len(inside)
        assert n == 0 or int(heap[0].listed) == min(inside, key=lambda j: inside[j])
    drained = []
    while n > 0:
        drained.append(int(heap[0].listed))
        n = take_out(heap, n, drained[-1])
    assert drained == sorted(inside, key=lambda j: inside[j])


@given(st.lists(st.integers(0, 5), max_size=SIZE))
def test_a_sorted_list_keeps_the_order_of_equals(keys: list[int]) -> None:
    lines = records(SORTED)(np.zeros((SIZE, cells_of(SORTED))))
    for i, key in enumerate(keys):
        lines[i].key = key
        insert_sorted(lines, i, i)
    assert lines.listed[: len(keys)].tolist() == sorted(range(len(keys)), key=lambda i: keys[i])
