from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convattn.data.folders.split import split_as_before, split_by_name, stratified_split

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=80)
FRACTIONS = st.floats(0.05, 0.9)


@given(labels=LABELS, fraction=FRACTIONS, seed=st.integers(0, 99))
def test_every_index_is_in_exactly_one_part(labels: list[int], fraction: float, seed: int) -> None:
    kept, held_out = stratified_split(labels, fraction=fraction, seed=seed)
    assert sorted(kept + held_out) == list(range(len(labels)))


@given(labels=LABELS, fraction=FRACTIONS)
def test_every_class_is_held_out_in_proportion(labels: list[int], fraction: float) -> None:
    kept, held_out = stratified_split(labels, fraction=fraction, seed=0)
    counts = Counter(labels[i] for i in held_out)
    for label, count in Counter(labels).items():
        assert abs(counts[label] - fraction * count) <= 1
    assert {labels[i] for i in kept} == set(labels)


def test_the_total_is_exact() -> None:
    kept, held_out = stratified_split([0] * 7 + [1] * 7 + [2] * 6, fraction=0.25, seed=0)
    assert (len(kept), len(held_out)) == (15, 5)


def test_the_split_is_the_same_in_every_version() -> None:
    _, held_out = stratified_split([0, 1] * 10, fraction=0.3, seed=0)
    assert held_out == [0, 9, 12, 15, 17, 18]


def test_another_seed_gives_another_split() -> None:
    splits = {tuple(stratified_split([0] * 50, fraction=0.2, seed=s)[1]) for s in range(5)}
    assert len(splits) == 5


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_outside_0_to_1_is_an_error(fraction: float) -> None:
    with pytest.raises(ValueError, match=f"val_fraction must lie between 0 and 1, got {fraction}"):
        stratified_split([0, 1], fraction=fraction, seed=0)


def test_names_are_split_in_their_order() -> None:
    names = ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]
    assert split_by_name(names, ["b/2.png", "c/1.png", "a/1.png"]) == ([1, 2], [0, 3], ["c/1.png"])
    assert split_by_name(names, []) == ([0, 1, 2, 3], [], [])


def test_a_name_in_another_unicode_form_counts_where_the_exact_name_is_missing() -> None:
    composed, decomposed = "gr\u00fcn.png", "gru\u0308n.png"
    assert split_by_name([decomposed], [composed]) == ([], [0], [])
    assert split_by_name([composed, decomposed], [composed]) == ([1], [0], [])
    assert split_by_name([composed, decomposed], [decomposed]) == ([0], [1], [])


def test_images_that_were_held_out_before_are_held_out_if_they_can_be_read() -> None:
    names, broken = ["1.png", "2.png", "3.png"], ["4.png"]
    kept, held, notes = split_as_before(names, broken, ["2.png", "4.png", "5.png"], "pets")
    assert (kept, held) == ([0, 2], [1])
    assert notes == ["1 of 3 images that were held out is no longer in pets: '5.png'"]
    assert split_as_before(names, broken, ["4.png"], "pets") == ([0, 1, 2], [], [])
    with pytest.raises(ValueError, match="pets holds none of the 1 images that were held out"):
        split_as_before(names, broken, ["5.png"], "pets")
