import math

import numpy as np
import pytest
from scipy.stats import t

from agents.evaluation.statistics import mean_interval, paired_bootstrap, t_quantile
from engine.errors import InputError


@pytest.mark.parametrize("degrees", [1, 2, 4, 9, 30, 31, 60, 1000])
def test_t_quantiles_are_those_of_scipy(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(float(t.ppf(0.975, degrees)), abs=6e-4)


def test_mean_interval_by_hand() -> None:
    """Values 1, 2, 3: mean 2, s = 1, half width 4.303 / sqrt(3)."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert [found.low, found.high] == pytest.approx([2.0 - 4.303 / math.sqrt(3), 2.0 + 4.303 / math.sqrt(3)])


def test_one_value_has_no_interval() -> None:
    assert mean_interval([1.5]).to_dict() == {"mean": 1.5, "low": None, "high": None, "n": 1}
    assert paired_bootstrap([1.5], [1.0]).to_dict() == {"mean": 0.5, "low": None, "high": None, "n": 1}


def test_a_missing_value_leaves_no_number() -> None:
    assert mean_interval([1.0, math.nan]).to_dict()["mean"] is None
    assert paired_bootstrap([1.0, math.nan], [1.0, 1.0]).to_dict()["mean"] is None


def test_three_pairs_give_the_range_of_their_differences() -> None:
    found = paired_bootstrap([11.0, 12.0, 14.0], [10.0, 10.0, 10.0])
    assert (found.low, found.high) == (1.0, 4.0)
    assert found.mean == pytest.approx(7 / 3)
    assert found.excludes_zero


def test_pairing_removes_what_the_pairs_share() -> None:
    rng = np.random.default_rng(3)
    common = rng.normal(0.0, 100.0, 8)
    found = paired_bootstrap(common + 1.0 + rng.normal(0.0, 0.1, 8), common)
    assert found.excludes_zero
    assert found.high - found.low < 0.5


def test_paired_intervals_cover_the_true_difference_as_often_as_they_say() -> None:
    """300 experiments with 5 pairs: the plain percentile bootstrap would cover about 0.83."""
    rng = np.random.default_rng(0)
    samples = rng.normal(0.3, 1.0, (300, 5))
    intervals = [paired_bootstrap(sample, np.zeros(5)) for sample in samples]
    covered = np.mean([found.low <= 0.3 <= found.high for found in intervals])
    assert 0.9 <= covered <= 0.99


def test_the_bootstrap_depends_on_nothing_but_its_seed() -> None:
    values, reference = [3.0, 1.0, 4.0, 1.0, 5.0], [2.0, 7.0, 1.0, 8.0, 2.0]
    assert paired_bootstrap(values, reference, seed=4) == paired_bootstrap(values, reference, seed=4)


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="two columns of one length"):
        paired_bootstrap([1.0, 2.0], [1.0])
