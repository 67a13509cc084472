from __future__ import annotations

import numpy as np
import pytest

from convattn.bench.statistics import quantile, speed_ratio, summarize


def test_a_summary_of_five_values_is_exact():
    found = summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert found.as_dict() == {
        "median": 3.0,
        "low": 2.0,
        "high": 4.0,
        "smallest": 1.0,
        "largest": 5.0,
        "count": 5,
    }


def test_a_quantile_is_interpolated_linearly():
    assert quantile([1.0, 2.0], 0.5) == 1.5
    assert quantile([0.0, 10.0, 20.0, 40.0], 0.75) == 25.0
    assert quantile([7.0], 0.25) == 7.0


def test_quantiles_match_numpy():
    values = np.random.default_rng(0).random(37).tolist()
    for share in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
        assert quantile(values, share) == pytest.approx(np.quantile(values, share))


def test_an_outlier_does_not_change_the_median():
    assert summarize([1.0, 1.0, 1.0, 1.0, 900.0]).median == 1.0


def test_ratios_are_taken_round_by_round():
    # The machine becomes ten times slower: the ratio within a round stays, that of medians changes.
    ours, theirs = [1.0, 1.1, 10.0, 11.0, 12.0], [2.0, 2.2, 20.0, 22.0, 24.0]
    found = speed_ratio(ours, theirs)
    assert (found.low, found.median, found.high) == pytest.approx((2.0, 2.0, 2.0))


def test_a_ratio_above_one_means_faster():
    assert speed_ratio([1.0], [4.0]).median == 4.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarize([]), "no values"),
        (lambda: quantile([1.0], 1.5), "between 0 and 1, got 1.5"),
        (lambda: speed_ratio([1.0], [1.0, 2.0]), "got 1 and 2 rounds"),
    ],
)
def test_wrong_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call()
