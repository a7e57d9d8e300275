"""What policies know of a device: they predict what the model says, with every term and the table."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.compiled.records import cells_of, record
from engine.device.fitting import Batch
from engine.device.latency import NUMBERS, LatencyModel, iteration_seconds, load_profile
from engine.device.predicting import (
    DEVICE,
    MOST_ROWS,
    check_device,
    device_cells,
    gain_apart,
    largest,
    linear,
    predicted,
)
from engine.errors import InputError
from engine.server.features import EMPTY, Features, add

NAME = "rtx6000ada-mistral-7b"
TERMS = [name for name in NUMBERS if name.startswith(("per_", "any_"))]
_record = record(DEVICE)


def features_of(prefills: list[tuple[int, int]], decodes: list[int]) -> Features:
    f = EMPTY
    for n, done in prefills:
        f = add(f, float(done), float(n), False)
    for context in decodes:
        f = add(f, context - 1.0, 1.0, True)
    return f


@st.composite
def models(draw: st.DrawFn) -> LatencyModel:
    """Devices of all forms: floor and tokens, or tables with any slopes, with some of the terms."""
    terms: dict[str, Any] = {name: draw(st.sampled_from([0.0, 1e-7, 1e-5])) for name in TERMS}
    traits: dict[str, Any] = {
        "query_tile": draw(st.sampled_from([128, 256])),
        "cached": draw(st.sampled_from([0.0, 500.0])),
        "eager_floor": draw(st.sampled_from([0.0, 0.02])),
        "graph_tokens": draw(st.sampled_from([0.0, 512.0])),
    }
    if draw(st.booleans()):
        knots = draw(st.lists(st.integers(1, 3000), min_size=2, max_size=12, unique=True))
        table = tuple((float(n), draw(st.floats(1e-3, 0.1))) for n in sorted(knots))
        return LatencyModel(**{**terms, "overhead": 1e-3, "floor": 0.0, "table": table, **traits})
    tile = draw(st.sampled_from([1, 64, 128]))
    return LatencyModel(**{**terms, "overhead": 1e-3, "floor": 0.01, "tile": tile, **traits})


batches = st.tuples(
    st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 5000)), max_size=3),
    st.lists(st.integers(1, 5000), max_size=5),
).filter(lambda batch: bool(batch[0] or batch[1]))


@given(models(), batches)
@settings(max_examples=150, deadline=None)
def test_policies_predict_what_the_model_says(
    model: LatencyModel, batch: tuple[list[tuple[int, int]], list[int]]
) -> None:
    prefills, decodes = batch
    exact = iteration_seconds(model.compiled(), Batch(tuple(prefills), tuple(decodes)).features())
    assert predicted(_record(device_cells(model)), features_of(prefills, decodes)) == pytest.approx(exact, rel=1e-12)


@given(models(), batches, st.integers(0, 3000), st.integers(-1, 3000), st.floats(1e-3, 0.3))
@settings(max_examples=150, deadline=None)
def test_the_largest_chunk_fits_and_where_seconds_rise_the_next_does_not(
    model: LatencyModel, batch: tuple[list[tuple[int, int]], list[int]], done: int, most: int, limit_s: float
) -> None:
    device, f = _record(device_cells(model)), features_of(*batch)
    n = largest(device, f, float(done), most, limit_s)
    assert 0 <= n <= max(0, most)
    seconds = np.array([predicted(device, add(f, float(done), float(k), False)) for k in range(1, max(0, most) + 1)])
    if n:
        assert seconds[n - 1] <= limit_s
    if (np.diff(seconds) >= 0.0).all():
        assert n == int((seconds <= limit_s).sum())


def test_a_long_table_keeps_its_ends_and_its_shape() -> None:
    table = tuple((float(n), 1e-3 + 1e-5 * n) for n in range(1, 501))
    model = LatencyModel(0.0, 0.0, 0.0, 0.0, 0.0, table=table)
    device = _record(device_cells(model))
    assert device.rows == MOST_ROWS
    for tokens in (1, 2, 77, 250, 499, 500, 900):
        assert linear(device, float(tokens)) == pytest.approx(1e-3 + 1e-5 * tokens)


def test_what_is_gained_apart_by_hand() -> None:
    """60 decodes of 1000 KV tokens beside 512 prompt tokens: mixing saves an overhead and a floor, and costs KV."""
    decodes = features_of([], [1000] * 60)
    for name in (NAME, f"{NAME}:mixed=6"):
        model = load_profile(name)
        both = 572 * model.per_token - 512 * model.per_token - model.overhead - model.floor  # together - apart
        both += model.per_mixed * 60_000
        gain = gain_apart(_record(device_cells(model)), decodes, 512.0)
        together = iteration_seconds(model.compiled(), Batch(((512, 0),), (1000,) * 60).features())
        assert gain == pytest.approx(both / together)
        assert (gain > 0.0) == (model.per_mixed > 0.0)
    dear = _record(device_cells(load_profile(f"{NAME}:mixed=6")))
    assert gain_apart(dear, features_of([], [50]), 512.0) < 0.0, "one overhead is more than 50 KV tokens"


@settings(max_examples=200, deadline=None)
@given(models())
def test_every_model_is_a_device_that_policies_take(model: LatencyModel) -> None:
    check_device(device_cells(model).view(DEVICE)[0])
    assert device_cells(model).max() <= 1e9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 1.0}, "expected 0 or 2 to 96 rows of a table, got 1"),
        ({"rows": 2.5}, "expected 0 or 2 to 96 rows of a table, got 2.5"),
        ({"rows": 97.0}, "expected 0 or 2 to 96 rows of a table, got 97"),
        ({"rows": 3.0}, "expected a table of rising tokens and seconds > 0"),
        ({"overhead": 0.0, "floor": 0.0, "per_token": 0.0}, "expected a device on which a batch takes time"),
    ],
)
def test_a_device_from_a_file_is_checked(change: dict[str, float], message: str) -> None:
    cells = device_cells(load_profile(NAME))
    assert len(cells) == cells_of(DEVICE)
    device = cells.view(DEVICE)
    check_device(device[0])
    for name, value in change.items():
        device[name] = value
    with pytest.raises(InputError, match=message):
        check_device(device[0])
