"""Requests and tiers: what is accepted, what is refused, what a digest covers."""

import dataclasses
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.demand.forecast import Forecast
from engine.demand.requests import DEFAULT_TIERS, Requests, Tier, check_shares, draw_tiers, seeded
from engine.errors import InputError


def three(**changes: Any) -> Requests:
    fields: dict[str, Any] = {"arrival": [0.0, 1.0, 1.5], "prompt": [10, 20, 30], "output": [1, 2, 3]}
    return Requests.create(**(fields | changes))


def test_create_converts_to_the_documented_types() -> None:
    requests = three(tier=[0, 1, 1], prediction=[1.0, np.nan, 5.0])
    assert requests.arrival.dtype == np.float64
    assert requests.prediction.dtype == np.float64
    assert {requests.prompt.dtype, requests.output.dtype, requests.tier.dtype} == {np.dtype(np.int32)}
    assert len(requests) == 3


def test_arrays_are_copies_that_cannot_be_written() -> None:
    arrival = np.array([0.0, 1.0])
    requests = Requests.create(arrival, [1, 1], [1, 1])
    arrival[0] = 0.5
    assert requests.arrival[0] == 0.0
    for array in (requests.arrival, requests.prompt, requests.output, requests.tier, requests.prediction):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_defaults_are_the_largest_tier_and_no_prediction() -> None:
    requests = three()
    assert requests.tiers == DEFAULT_TIERS
    assert requests.tier.tolist() == [1, 1, 1]
    assert np.isnan(requests.prediction).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival": [0.0, -1.0, 2.0]}, r"arrival\[1\]: expected seconds >= 0 and <= 1e\+09, got -1.0"),
        ({"arrival": [0.0, math.nan, 2.0]}, r"arrival\[1\]: .* got nan"),
        ({"arrival": [0.0, 1.0, math.inf]}, r"arrival\[2\]: .* got inf"),
        ({"arrival": [0.0, 2.0, 1.0]}, r"arrival\[2\]: expected times in order, got 1.0 s after 2.0 s"),
        ({"arrival": []}, "at least one request, got none"),
        ({"arrival": [[0.0, 1.0, 2.0]]}, r"arrival: expected a one-dimensional array, got shape \(1, 3\)"),
        ({"arrival": ["a", "b", "c"]}, "arrival: expected numbers"),
        ({"arrival": [[0.0], [1.0, 2.0], 1.0]}, "arrival: .* ragged"),
        ({"prompt": [1, 0, 1]}, r"prompt\[1\]: expected a whole number 1\.\.2147483647, got 0"),
        ({"prompt": [1, 1, 2**31]}, r"prompt\[2\]: .* got 2147483648"),
        ({"prompt": [1.0, 2.5, 1.0]}, r"prompt\[1\]: .* got 2.5"),
        ({"output": [1, 1, -4]}, r"output\[2\]: .* got -4"),
        ({"output": [1.0, math.nan, 1.0]}, r"output\[1\]: .* got nan"),
        ({"output": [1, 1]}, "output: expected 3 values .*, got 2"),
        ({"tier": [0, 1, 2]}, r"tier\[2\]: expected a whole number 0\.\.1, got 2"),
        ({"prediction": [1.0, 0.0, 1.0]}, r"prediction\[1\]: .* got 0.0"),
        ({"prediction": [1.0, 1.0, math.inf]}, r"prediction\[2\]: .* got inf"),
        ({"tiers": ()}, "tiers: expected at least one tier"),
        ({"tiers": (DEFAULT_TIERS[0], DEFAULT_TIERS[0])}, "tiers: expected distinct names"),
    ],
)
def test_bad_input_names_the_first_offending_index(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        three(**changes)
    assert "\n" not in str(caught.value)


def test_digest_covers_every_array_and_the_tiers_but_not_the_source() -> None:
    requests = three(tier=[0, 1, 1])
    assert len(requests.digest()) == 16
    assert int(requests.digest(), 16) >= 0
    assert requests.replace(source="elsewhere").digest() == requests.digest()
    slower = (DEFAULT_TIERS[0], Tier("relaxed", 0.95, 0.6))
    changed = [
        requests.replace(arrival=[0.0, 1.0, 1.6]),
        requests.replace(prompt=[10, 20, 31]),
        requests.replace(output=[1, 2, 4]),
        requests.replace(tier=[1, 0, 1]),
        requests.replace(prediction=[1.0, np.nan, np.nan]),
        requests.replace(tiers=slower),
    ]
    assert len({requests.digest(), *(other.digest() for other in changed)}) == 7


def test_digest_does_not_see_negative_zero_or_the_sign_of_nan() -> None:
    plain = three(prediction=[np.nan, 1.0, 1.0])
    assert three(arrival=[-0.0, 1.0, 1.5], prediction=[-np.nan, 1.0, 1.0]).digest() == plain.digest()


def test_pickling_keeps_content_and_protection() -> None:
    copy = pickle.loads(pickle.dumps(three()))
    assert copy.digest() == three().digest()
    assert not copy.prompt.flags.writeable


def test_rate_counts_gaps() -> None:
    assert three().rate == pytest.approx(2 / 1.5)
    assert three(arrival=[0.0, 0.0, 0.0]).rate == math.inf


def test_take_keeps_the_requests_that_are_asked_for_even_none() -> None:
    some = three(prediction=[1.0, 2.0, 3.0], source="here").take(np.array([0, 2]))
    assert (some.prompt.tolist(), some.prediction.tolist(), some.source) == ([10, 30], [1.0, 3.0], "here")
    assert some.digest() == Requests.create([0.0, 1.5], [10, 30], [1, 3], prediction=[1.0, 3.0]).digest()
    assert len(three().take(np.array([], np.int64))) == 0
    with pytest.raises(InputError, match="expected an open loop to take some from, got a closed loop"):
        three().limited(1).take(np.array([0]))


def test_take_keeps_refreshed_predictions_with_their_requests() -> None:
    first, total = np.array([0, 0, 1, 3]), np.array([7.0, 8.0, 9.0], np.float32)
    requests = three(forecast=Forecast("own", every=1, first=first, total=total))
    found = requests.take(np.array([0, 2])).forecast
    assert found.first.tolist() == [0, 0, 2]
    assert found.total.tolist() == [8.0, 9.0]


def test_head_keeps_the_first_requests() -> None:
    assert three().head(2).prompt.tolist() == [10, 20]
    for n in (0, 4):
        with pytest.raises(InputError, match=rf"num_requests: expected 1\.\.3 .*, got {n}"):
            three().head(n)


def test_replace_refuses_unknown_fields() -> None:
    with pytest.raises(InputError, match="got prompts"):
        three().replace(prompts=[1, 2, 3])


def test_an_argument_that_there_is_not_is_refused() -> None:
    with pytest.raises(TypeError, match="sources"):
        three(sources="a file")


def test_what_can_never_be_served_is_counted_and_the_first_is_named() -> None:
    """A prompt needs one token less than max_model_len, KV the tokens that are served; in the reference all tokens."""
    three().check_servable(EngineConfig(max_model_len=31))
    with pytest.raises(InputError, match=r"request 1: .* prompt < 20 tokens .*got 20 \+ 2; 2 of 3 requests"):
        three().check_servable(EngineConfig(max_model_len=20))
    small = EngineConfig(block_size=1, num_blocks=32, watermark=0.0)
    three(output=[1, 2, 2]).check_servable(small)
    with pytest.raises(InputError, match=r"request 2: .* <= 32 tokens \(KV above .*got 30 \+ 3; 1 of 3"):
        three().check_servable(small)
    three().check_servable(small.replace(max_model_len=32))
    reference = EngineConfig.reference(max_model_len=32)
    with pytest.raises(InputError, match=r"request 2: expected prompt \+ output <= 32 tokens, got 30 \+ 3; 1 of 3"):
        three().check_servable(reference)
    with pytest.raises(InputError, match="request 0"):
        Requests.create([0.0], [2**31 - 1], [2**31 - 1]).check_servable(EngineConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "name"),
        ({"share": 1.5}, r"share: expected a number >= 0 and <= 1, got 1.5"),
        ({"share": math.nan}, "share"),
        ({"tbt_s": 0.0}, "tbt_s"),
        ({"ttft_s": math.inf}, "ttft_s"),
        ({"weight": -1.0}, "weight"),
    ],
)
def test_tiers_check_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(Tier("a", 0.5, 0.1), **fields)


def test_shares_must_sum_to_one() -> None:
    with pytest.raises(InputError, match=r"sum to 1, got 0.9 \(a 0.4, b 0.5\)"):
        check_shares((Tier("a", 0.4, 0.1), Tier("b", 0.5, 0.1)))


def test_tiers_are_drawn_as_the_slai_code_draws_paying_users() -> None:
    pays = np.random.default_rng(3).random(1000) < 0.05
    assert np.array_equal(draw_tiers(np.random.default_rng(3), 1000, DEFAULT_TIERS) == 0, pays)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), st.integers(0, 2**32))
def test_drawn_tiers_are_indices_and_zero_shares_stay_empty(parts: list[float], seed: int) -> None:
    shares = [0.0, *(part / sum(parts) for part in parts)]
    tiers = tuple(Tier(f"t{index}", share, 0.1) for index, share in enumerate(shares))
    drawn = draw_tiers(np.random.default_rng(seed), 200, tiers)
    assert drawn.min() >= 1
    assert drawn.max() < len(tiers)


@pytest.mark.parametrize("seed", [-1, None, 1.5, "a"])
def test_seeds_are_whole_numbers(seed: Any) -> None:
    with pytest.raises(InputError, match="seed: expected a whole number"):
        seeded(seed)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 1e6), st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)),
        min_size=1,
        max_size=30,
    )
)
def test_whatever_is_accepted_comes_back_unchanged(rows: list[tuple[float, int, int]]) -> None:
    rows.sort(key=lambda row: row[0])
    arrival, prompt, output = (list(column) for column in zip(*rows, strict=True))
    requests = Requests.create(arrival, prompt, output)
    assert requests.arrival.tolist() == arrival
    assert requests.prompt.tolist() == prompt
    assert requests.output.tolist() == output
    assert requests.head(len(rows)).digest() == requests.replace().digest() == requests.digest()
