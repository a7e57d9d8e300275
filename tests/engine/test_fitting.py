"""Fitting measured batches: a device of known cost is found again, and bad tables are refused."""

import numpy as np
import pytest

from engine.device.fitting import DECODE, HELD_OUT, PREFILL, TABLE, Batch, Point, fit
from engine.device.latency import LatencyModel, iteration_seconds, load_profile
from engine.errors import InputError

TRUTH = LatencyModel(
    overhead=0.0,
    floor=0.0,
    per_token=0.0,
    per_pair=2e-8,
    per_context=3e-7,
    per_request=4e-5,
    per_chunk=1e-4,
    any_chunk=5e-4,
    per_read=6e-8,
    cached=16384,
    per_uncached=1e-7,
    table=((1, 0.004), (64, 0.005), (128, 0.009), (512, 0.02)),
)


def points(kind: str, *batches: Batch) -> list[Point]:
    """Batches with the seconds that TRUTH says."""
    compiled = TRUTH.compiled()
    return [Point(kind, batch, iteration_seconds(compiled, batch.features())) for batch in batches]


MEASURED = [
    *points(TABLE, *(Batch(((n, 0),)) for n in (1, 64, 128, 512))),
    *points(PREFILL, *(Batch(((n, k),)) for n in (1, 64, 300) for k in (500, 4000))),
    *points(PREFILL, Batch(((64, 0), (64, 500)))),
    *points(DECODE, *(Batch((), (k,) * n) for n in (1, 8, 64) for k in (100, 3000))),
    *points(HELD_OUT[2], Batch(((100, 700),), (50, 2000, 900)), Batch(((30, 0), (200, 20)), tuple(range(1, 40)))),
]


def test_a_device_of_known_cost_is_found_again() -> None:
    model = fit(MEASURED, "found", {"device": "toy"})
    assert model.per_context == pytest.approx(TRUTH.per_context, rel=1e-3)
    assert model.per_pair == pytest.approx(TRUTH.per_pair, rel=1e-3)
    assert model.cached == TRUTH.cached
    assert model.per_uncached == pytest.approx(TRUTH.per_uncached, rel=1e-3)
    assert model.per_read == pytest.approx(TRUTH.per_read, rel=1e-3)
    assert max(error["max"] for error in model.provenance["residuals"].values()) < 0.1
    assert model.provenance["device"] == "toy"
    assert model.provenance["validity"] == {"tokens": [1, 512], "requests": [1, 64], "context_tokens": [0, 4300]}
    assert LatencyModel.from_json({"format": "llmsched-profile/1", **vars(model)}, "again") == model


def test_a_table_is_linear_between_its_rows_and_beyond_them() -> None:
    compiled = LatencyModel(0.0, 0.0, 0.0, 0.0, 0.0, table=((2, 1.0), (4, 2.0), (8, 6.0))).compiled()
    found = [iteration_seconds(compiled, Batch((), (1,) * n).features()) for n in (1, 2, 3, 4, 6, 8, 10)]
    assert found == pytest.approx([0.5, 1.0, 1.5, 2.0, 4.0, 6.0, 8.0])


def test_shipped_tiny_profile_says_how_well_it_fits() -> None:
    model = load_profile("cpu-tiny-mistral")
    assert model.provenance["residuals"][HELD_OUT[2]]["mape"] < 5.0
    assert len(model.table) > 50


@pytest.mark.parametrize(
    ("table", "what"),
    [(((1, 1.0),), "one row"), (((2, 1.0), (1, 2.0)), "falling"), (((1, 0.0), (2, 1.0)), "zero"), ((1, 2, 3), "odd")],
)
def test_bad_tables_are_refused(table: tuple[tuple[float, float], ...], what: str) -> None:
    pairs = r"table\[0\]: expected a list, got 1"
    rising = "table: expected 2 or more pairs of rising tokens, seconds > 0"
    with pytest.raises(InputError, match=pairs if what == "odd" else rising):
        LatencyModel(0.0, 0.0, 0.0, 0.0, 0.0, table=table)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(InputError, match="expected at least 2 token counts in set 'table' and points in set 'decode'"):
        fit(MEASURED[:1], "poor", {})
    assert np.isfinite([p.seconds for p in MEASURED]).all()
