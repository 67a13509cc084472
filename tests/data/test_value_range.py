from __future__ import annotations

import math

import numpy as np
import pytest

from convattn.data.value_range import check_range, decide_range, misfit, named, to_bytes


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0, 1)),
        (0.01, 0.98, (0, 1)),
        (0.0, 1.01, (0, 1)),  # reflectances pass 1 a little
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
def test_floats_take_a_usual_range_or_their_own(
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
def test_integers_take_their_bits_or_their_own_range(
    low: int, high: int, expected: tuple[float, float]
) -> None:
    assert decide_range(np.array([low, (low + high) // 2, high], dtype=np.int32)) == expected


def test_nan_and_infinite_values_are_passed_over() -> None:
    values = np.array([0.2, 0.5, 0.8, np.nan, np.inf, -np.inf], dtype=np.float32)
    assert decide_range(values) == (0, 1)
    assert to_bytes(values, (0, 1)).tolist() == [51, 128, 204, 0, 0, 0]
    assert to_bytes(np.array([np.inf, np.nan, -1]), (-1, 1)).tolist() == [0, 0, 0]


def test_nothing_but_nan_still_has_a_range() -> None:
    low, high = decide_range(np.full(3, np.nan))
    assert low < high
    assert "nothing but NaN" in misfit(np.full(3, np.nan), (low, high))


@pytest.mark.parametrize("marker", [-9999.0, -3.4e38, 1e20])
def test_a_value_that_marks_pixels_without_data_does_not_count(marker: float) -> None:
    values = np.append(np.linspace(0, 1, 100), [marker] * 60)
    assert decide_range(values) == (0, 1)


def test_hot_pixels_do_not_count() -> None:
    values = np.random.default_rng(0).integers(0, 4096, 100_000).astype(np.uint16)
    values[:5] = 65535, 64000, 30000, 20000, 60000
    assert decide_range(values) == (0, 4095)
    values[:50] = np.linspace(20_000, 65_535, 50)  # more than 1 in 10,000
    assert decide_range(values) == (0, 65535)


def test_two_values_are_both_measured() -> None:
    assert decide_range(np.array([0, 1, 2, 60_000], dtype=np.uint16)) == (0, 65535)


@pytest.mark.parametrize("value", [0.0, 0.7, 100.0, -5.0, 1e9])
def test_a_constant_image_has_a_range(value: float) -> None:
    low, high = decide_range(np.full(4, value))
    assert low <= value <= high
    assert low < high


@pytest.mark.parametrize("wrong", [(1, 1), (2, 1), (0, math.inf), (math.nan, 1), (0,), (0, 1, 2)])
def test_a_range_is_two_finite_numbers_in_order(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"such as \[0, 4095\], got \["):
        check_range(wrong)


def test_a_range_may_be_a_list_or_none() -> None:
    assert check_range([0, 4095]) == (0.0, 4095.0)
    assert check_range(None) is None


def test_values_beyond_the_range_and_a_range_that_is_hardly_used_are_told() -> None:
    twelve = np.arange(4096, dtype=np.uint16)
    assert misfit(twelve, (0, 4095)) == ""
    assert misfit(np.array([0.2, 0.5, 1.01]), (0, 1)) == ""
    assert "74% of their values lie outside" in misfit(twelve, (0, 1023))
    assert "0 to 4095 fill only 6.25% of it" in misfit(twelve, (0, 65535))
    assert "fill only 0.02%" in misfit(np.linspace(0, 1, 50), (0, 4095))


def test_bits_are_named() -> None:
    assert named((0, 4095)) == "0 to 4095 (12 bits)"
    assert named((-1, 1)) == "-1 to 1"
