import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import t

from agents.evaluation.statistics import LEAN, mean_interval, paired_interval, t_quantile
from engine.errors import InputError

Draw = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]
KINDS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, shape: rng.normal(size=shape), 0.0),
    "log-normal": (lambda rng, shape: rng.lognormal(0.0, 0.5, shape), math.exp(0.125)),
    "gamma": (lambda rng, shape: -rng.gamma(4.0, size=shape), -4.0),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 1.0),
}
"""How to draw values, and their mean."""


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 30, 31, 60, 1000])
def test_t_quantiles_are_those_of_scipy(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(float(t.ppf(0.975, degrees)), rel=1e-9)


def test_mean_interval_by_hand() -> None:
    """Values 1, 2, 3: mean 2, s = 1, no skew, half width 4.3027 / sqrt(3)."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert [found.low, found.high] == pytest.approx([2.0 - 4.302653 / math.sqrt(3), 2.0 + 4.302653 / math.sqrt(3)])


def test_the_interval_is_longer_on_the_side_of_the_tail() -> None:
    """Differences 1, 2, 6: mean 3, s = sqrt(7), sum of cubes 18, skewness 18 / 3 / 7**1.5; mirrored, the other side."""
    half = 4.302653 * math.sqrt(7.0 / 3.0)
    longer = half * (1.0 + LEAN / 3 * 6.0 / 7.0**1.5)
    right = paired_interval([11.0, 12.0, 16.0], [10.0, 10.0, 10.0])
    left = paired_interval([10.0, 10.0, 10.0], [11.0, 12.0, 16.0])
    assert [right.mean, right.low, right.high] == pytest.approx([3.0, 3.0 - half, 3.0 + longer])
    assert [left.mean, left.low, left.high] == pytest.approx([-3.0, -3.0 - longer, -3.0 + half])
    assert not right.excludes_zero


@pytest.mark.parametrize("count", [3, 5, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_the_true_difference_as_often_as_they_say(kind: str, count: int) -> None:
    """5000 experiments: 93 to 97 %; 3 exponential differences cannot show their tail and are covered with 92 %."""
    draw, mean = KINDS[kind]
    samples = draw(np.random.default_rng(count), (5000, count))
    intervals = [paired_interval(sample, np.zeros(count)) for sample in samples]
    covered = np.mean([found.low <= mean <= found.high for found in intervals])
    assert (0.915 if (kind, count) == ("exponential", 3) else 0.93) <= covered <= 0.975


def test_one_value_has_no_interval() -> None:
    assert mean_interval([1.5]).to_dict() == {"mean": 1.5, "low": None, "high": None, "n": 1}
    assert paired_interval([1.5], [1.0]).to_dict() == {"mean": 0.5, "low": None, "high": None, "n": 1}
    assert not mean_interval([1.5]).excludes_zero
    assert mean_interval([]).to_dict() == {"mean": None, "low": None, "high": None, "n": 0}


def test_two_values_have_the_interval_of_student() -> None:
    found = mean_interval([1.0, 3.0])
    assert [found.low, found.high] == pytest.approx([2.0 - 12.70620, 2.0 + 12.70620], rel=1e-6)


def test_equal_values_have_an_interval_without_width() -> None:
    same = paired_interval([2.5, 3.5, 4.5], [2.0, 3.0, 4.0])
    assert (same.mean, same.low, same.high, same.excludes_zero) == (0.5, 0.5, 0.5, True)
    assert not paired_interval([1.0, 2.0], [1.0, 2.0]).excludes_zero
    rounded = mean_interval([0.1] * 7)  # their sum is not 0.7
    assert rounded.low == rounded.mean == rounded.high == 0.1


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_missing_value_leaves_no_number(odd: float) -> None:
    assert mean_interval([1.0, odd]).to_dict()["mean"] is None
    assert paired_interval([1.0, odd], [1.0, odd]).to_dict() == {"mean": None, "low": None, "high": None, "n": 2}


def test_values_too_large_to_square_have_no_interval() -> None:
    found = mean_interval([1e300, 1e300, -1e300])
    assert found.to_dict() == {"mean": pytest.approx(1e300 / 3), "low": None, "high": None, "n": 3}
    assert not found.excludes_zero


def test_pairing_removes_what_the_pairs_share() -> None:
    rng = np.random.default_rng(3)
    common = rng.normal(0.0, 100.0, 8)
    found = paired_interval(common + 1.0 + rng.normal(0.0, 0.1, 8), common)
    assert found.excludes_zero
    assert found.high - found.low < 0.6


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="two columns of one length"):
        paired_interval([1.0, 2.0], [1.0])
