"""Latency models: what each term counts, and profiles by name, at another speed, or not at all."""

import re
from pathlib import Path
from typing import Any

import pytest

from engine.device.fitting import Batch
from engine.device.latency import NUMBERS, TIMES, LatencyModel, iteration_seconds, load_profile
from engine.device.terms import Traits, Weights, weights
from engine.errors import InputError
from engine.server.features import Features

ROOT = Path(__file__).resolve().parents[2]
NAME = "rtx6000ada-mistral-7b"
FREE: dict[str, Any] = dict.fromkeys(NUMBERS, 0.0) | {"tile": 1, "query_tile": 128, "overhead": 1e-12}


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
        ("per_mixed", ((50, 50),), (9, 1000), 1009),
        ("per_mixed", ((50, 50), (4, 0)), (9,), 9),
        ("per_mixed", (), (9, 1000), 0),
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


def test_wide_tiles_of_queries_read_the_kv_less_often() -> None:
    batch = Batch(((256, 44), (257, 0)), (9,)).features()
    for tile, reads in ((128, 2 * 300 + 3 * 257), (256, 300 + 2 * 257)):
        model = LatencyModel(**{**FREE, "per_read": 1.0, "query_tile": tile})
        assert iteration_seconds(model.compiled(), batch) == pytest.approx(reads)
    with pytest.raises(InputError, match="query_tile: expected 128 or 256, got 64"):
        LatencyModel(**{**FREE, "query_tile": 64})


def test_a_profile_whose_mixed_batches_are_dearer() -> None:
    plain, dear = load_profile(NAME), load_profile(f"{NAME}:mixed=2.5")
    for prefills, more in (((), 0.0), (((300, 40),), 1.5 * plain.per_context * 1009)):
        batch = Batch(prefills, (9, 1000)).features()
        seconds, longer = (iteration_seconds(m.compiled(), batch) for m in (plain, dear))
        assert longer == pytest.approx(seconds + more)
    both = load_profile(f"{NAME}:mixed=2.5,speed=2")
    assert both.per_mixed == pytest.approx(dear.per_mixed / 2.0)
    with pytest.raises(InputError, match=r"mixed: expected a number >= 1, got 0.5"):
        load_profile(f"{NAME}:mixed=0.5")


def test_the_host_launches_what_no_cuda_graph_covers_and_the_device_waits() -> None:
    model = LatencyModel(**{**FREE, "per_context": 1e-6, "eager_floor": 0.03, "graph_tokens": 512.0})
    for tokens, context, expected in ((512, 1000, 1e-3), (513, 1000, 0.03), (513, 50_000, 0.05), (8192, 0, 0.03)):
        batch = Batch(((tokens - 1, 0),), (context,)) if context else Batch(((tokens, 0),))
        assert iteration_seconds(model.compiled(), batch.features()) == pytest.approx(expected)


def test_a_profile_behind_a_slower_host() -> None:
    plain, slow = load_profile(NAME), load_profile(f"{NAME}:eager=0.9")
    assert (plain.eager_floor, slow.eager_floor, slow.graph_tokens) == (0.0, 0.9, 512.0)
    assert load_profile(f"{NAME}:eager=0.9,speed=3").eager_floor == pytest.approx(0.3)
    small, large = (Batch(((n, 0),)).features() for n in (512, 513))
    same, longer = ([iteration_seconds(m.compiled(), b) for m in (plain, slow)] for b in (small, large))
    assert same[0] == same[1]
    assert longer[1] == pytest.approx(0.9)
    with pytest.raises(InputError, match=r"eager: expected a number >= 0 and <= 1, got 2"):
        load_profile(f"{NAME}:eager=2")


def test_an_unknown_profile_names_the_known_ones() -> None:
    for name in ("nosuch", "nosuch:speed=2"):
        with pytest.raises(InputError, match=f"expected one of .*{NAME}.*, got 'nosuch'"):
            load_profile(name)


@pytest.mark.parametrize("term", Weights._fields)
def test_a_term_is_declared_once_and_everything_follows(term: str) -> None:
    """A term is a field and a weight: its range, its speed, its place in the sum and in the fit come from these."""
    batch = Batch(((300, 40),), (9, 1000)).features()
    weight = getattr(weights(batch[0], Traits(0.0, 128)), term)
    model = LatencyModel(**{**FREE, term: 2.0})
    assert weight > 0.0
    assert iteration_seconds(model.compiled(), batch) == pytest.approx(2.0 * weight)
    assert getattr(model.scaled(0.5), term) == 1.0
    with pytest.raises(InputError, match=rf"profile 'custom': {term}: expected a number >= 0, got -1"):
        LatencyModel(**{**FREE, term: -1.0})


@pytest.mark.parametrize("name", [*Weights._fields, *Features._fields[3:]])
def test_a_term_is_named_in_few_files(name: str) -> None:
    """A new one touches features.py, terms.py and latency.py, not a dozen files."""
    sources = (path for package in ("engine", "agents", "llmsched_env") for path in (ROOT / package).rglob("*.py"))
    named = [path.name for path in sources if re.search(rf"\b{name}\b", path.read_text(encoding="utf-8"))]
    found = [file for file in named if file != "old_codec.py"]  # what bundles of the first format had, for ever
    assert len(found) <= 3, found
    assert {"terms.py", "features.py"} & set(found)
