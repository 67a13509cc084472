from __future__ import annotations

import math

import numpy as np
import pytest

from convattn.data.value_range import (
    check_range,
    clipped,
    decide_range,
    ends,
    misfit,
    named,
    to_bytes,
    unused,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0, 1)),
        (0.01, 0.98, (0, 1)),
        (0.0, 1.01, (0, 1)),  # reflectances may exceed 1
        (-0.02, 1.0, (0, 1)),
        (-1, 1, (-1, 1)),
        (-0.9, 0.7, (-1, 1)),
        (0, 255, (0, 255)),
        (3, 190, (0, 255)),
        (0, 65535, (0, 65535)),
        (0, 1.6, (0, 1.6)),
        (0, 2, (0, 2)),
        (0, 0.001, (0, 0.001)),
        (200, 310, (200, 310)),  # kelvins
        (-3, 2.5, (-3, 2.5)),
        (-0.05, 1.08, (-0.05, 1.08)),
    ],
)
def test_floats_get_a_usual_range_or_their_own(
    low: float, high: float, expected: tuple[float, float]
) -> None:
    values = np.linspace(low, high, 101)
    assert decide_range(values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 255, (0, 255)),
        (0, 256, (0, 1023)),
        (100, 1023, (0, 1023)),
        (0, 4095, (0, 4095)),
        (0, 4096, (0, 16383)),
        (0, 20_000, (0, 65535)),
        (0, 100_000, (0, 100_000)),
        (-1024, 3071, (-1024, 3071)),  # Hounsfield
        (-100, 100, (-100, 100)),
    ],
)
def test_integers_get_the_range_of_their_bits_or_their_own(
    low: int, high: int, expected: tuple[float, float]
) -> None:
    assert decide_range(np.array([low, (low + high) // 2, high], dtype=np.int32)) == expected


def test_nan_and_infinite_values_do_not_count() -> None:
    values = np.array([0.2, 0.5, 0.8, np.nan, np.inf, -np.inf], dtype=np.float32)
    assert decide_range(values) == (0, 1)
    assert to_bytes(values, (0, 1)).tolist() == [51, 128, 204, 0, 0, 0]
    assert to_bytes(np.array([np.inf, np.nan, -1]), (-1, 1)).tolist() == [0, 0, 0]


def test_values_that_are_all_nan_have_a_range() -> None:
    low, high = decide_range(np.full(3, np.nan))
    assert low < high
    assert "nothing but NaN" in misfit(np.full(3, np.nan), (low, high))


@pytest.mark.parametrize("marker", [-9999.0, -3.4e38, 1e20])
def test_a_code_for_missing_data_does_not_count_among_floats(marker: float) -> None:
    values = np.append(np.linspace(0, 1, 100), [marker] * 60)
    assert decide_range(values) == (0, 1)


@pytest.mark.parametrize("marker", [65535, -9999, -32768, 2**31 - 1])
def test_a_code_for_missing_data_does_not_count_among_integers(marker: int) -> None:
    values = np.append(np.arange(4096), [marker] * 60)
    assert decide_range(values) == (0, 4095)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1023, 1023), (4095, 4095), (3500, 4095), (16383, 16383), (60000, 65535)],
)
@pytest.mark.parametrize("count", [1, 300])
def test_no_other_constant_is_a_code(value: int, expected: int, count: int) -> None:
    values = np.r_[np.random.default_rng(0).integers(0, 30, 20_000), [value] * count]
    assert decide_range(values) == (0, expected)
    assert decide_range(values[:20_000], np.array([0, value])) == (0, expected)


def test_a_code_near_the_other_values_counts() -> None:
    assert decide_range(np.arange(0, 65536, 3)) == (0, 65535)
    assert decide_range(np.array([0, 65535] * 9)) == (0, 65535)


def test_a_bright_spot_counts_if_the_other_floats_fit_no_usual_range() -> None:
    values = np.linspace(0, 0.05, 50_000)
    assert decide_range(values, np.array([0, 0.9])) == (0, 1)
    assert decide_range(values, np.array([0, 700.0])) == (0, 700)


def test_outliers_do_not_count_if_the_other_floats_fit_a_usual_range() -> None:
    values = np.append(np.linspace(0, 1, 50_000), [-30.0, 200.0])
    assert decide_range(values) == (0, 1)
    assert clipped(values, (0, 1)) == (
        "less than 0.01% of their values become black and "
        "less than 0.01% of their values become white"
    )


def test_the_share_of_clipped_values_is_reported() -> None:
    values = np.r_[np.zeros(90), [-5.0] * 4, [np.nan] * 20, [2.0] * 6]
    assert clipped(values, (0, 1)) == (
        "4% of their values become black and 6% of their values become white"
    )
    assert clipped(values, (-5, 1)) == "6% of their values become white"
    assert clipped(values, (-5, 2)) == ""
    assert clipped(values, (-5, 2), np.array([7.0])) == (
        "less than 0.01% of their values become white"
    )


def test_the_ends_are_taken_with_and_without_codes() -> None:
    values = np.array([[3, 9, 65535], [0, 4, 65535], [0, 0, 5]], dtype=np.uint16)
    assert sorted(set(ends(values))) == [0, 9, 65535]
    assert set(ends(np.array([np.nan, 1.5, -np.inf]))) == {1.5}
    assert ends(np.array([np.nan])).size == 0


def test_codes_at_both_ends_do_not_count() -> None:
    values = np.r_[np.arange(4096), -9999, -32768, 65535]
    assert decide_range(values) == (0, 4095)
    assert decide_range(np.arange(40), ends(values)) == (0, 4095)


def test_few_distinct_values_all_count() -> None:
    assert decide_range(np.array([0, 1, 2, 60_000], dtype=np.uint16)) == (0, 65535)


@pytest.mark.parametrize("value", [0.0, 0.7, 100.0, -5.0, 1e9])
def test_a_constant_image_has_a_range(value: float) -> None:
    low, high = decide_range(np.full(4, value))
    assert low <= value <= high
    assert low < high


@pytest.mark.parametrize("wrong", [(1, 1), (2, 1), (0, math.inf), (math.nan, 1), (0,), (0, 1, 2)])
def test_a_range_must_be_two_increasing_finite_numbers(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"such as \[0, 4095\], got \["):
        check_range(wrong)


def test_a_range_may_be_a_list_or_none() -> None:
    assert check_range([0, 4095]) == (0.0, 4095.0)
    assert check_range(None) is None


def test_clipped_values_and_a_hardly_used_range_are_reported() -> None:
    twelve = np.arange(4096, dtype=np.uint16)
    assert misfit(twelve, (0, 4095)) == ""
    assert misfit(np.array([0.2, 0.5, 1.01]), (0, 1)) == ""
    assert misfit(twelve, (0, 1023)) == "75% of their values become white"
    assert "from 0 to 4095, fill only 6.25% of it" in misfit(twelve, (0, 65535))
    assert unused(np.full(9, 60_000), (0, 4095)) == ""  # the values lie outside the range
    assert "fill only 0.02%" in misfit(np.linspace(0, 1, 50), (0, 4095))


def test_the_name_of_a_range_has_its_bits() -> None:
    assert named((0, 4095)) == "0 to 4095 (12 bits)"
    assert named((-1, 1)) == "-1 to 1"
