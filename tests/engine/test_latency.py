"""Latency models: what each term counts, and profiles by name, at another speed, or not at all."""

from typing import Any

import pytest

from engine.device.fitting import Batch
from engine.device.latency import NUMBERS, TIMES, LatencyModel, iteration_seconds, load_profile
from engine.errors import InputError

NAME = "rtx6000ada-mistral-7b"
FREE: dict[str, Any] = dict.fromkeys(NUMBERS, 0.0) | {"tile": 1, "overhead": 1e-12}


@pytest.mark.parametrize(
    ("term", "prefills", "decodes", "expected"),
    [
        ("per_chunk", ((64, 0), (1, 500)), (7, 8), 2),
        ("any_chunk", ((64, 0), (1, 500)), (7, 8), 1),
        ("any_chunk", (), (7, 8), 0),
        ("per_pair", ((4, 10),), (9,), 11 + 12 + 13 + 14),
        ("per_read", ((128, 72),), (9,), 200),
        ("per_read", ((129, 71), (1, 0)), (), 2 * 200 + 1),
        ("per_context", ((50, 50),), (9, 1000), 1009),
        ("per_request", ((50, 50),), (9, 1000), 3),
    ],
)
def test_each_term_counts_what_it_says(
    term: str, prefills: tuple[tuple[int, int], ...], decodes: tuple[int, ...], expected: int
) -> None:
    model = LatencyModel(**{**FREE, term: 1.0})
    assert iteration_seconds(model.compiled(), Batch(prefills, decodes).features()) == pytest.approx(expected)


def test_a_profile_at_another_speed_is_that_device_with_every_time_scaled() -> None:
    model, faster = load_profile(NAME), load_profile(f"{NAME}:speed=2.5")
    assert faster.name == f"{NAME}:speed=2.5"
    assert all(getattr(faster, name) == pytest.approx(getattr(model, name) / 2.5) for name in TIMES)
    batch = Batch(((300, 40),), (9, 1000)).features()
    slow, fast = (iteration_seconds(m.compiled(), batch) for m in (model, faster))
    assert fast == pytest.approx(slow / 2.5)


@pytest.mark.parametrize("speed", ["0", "-1", "inf", "nan", "x", ""])
def test_a_speed_that_is_none_is_one_clear_line(speed: str) -> None:
    with pytest.raises(InputError, match=f"profile '{NAME}:speed={speed}': speed: expected a number > 0"):
        load_profile(f"{NAME}:speed={speed}")


def test_an_unknown_profile_names_the_known_ones() -> None:
    for name in ("nosuch", "nosuch:speed=2"):
        with pytest.raises(InputError, match=f"expected one of .*{NAME}.*, got 'nosuch'"):
            load_profile(name)
