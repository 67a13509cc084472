from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pytest

from convattn.data import open_dataset
from convattn.data.digits import open_digits


def test_1437_scans_to_learn_from_and_360_held_out() -> None:
    source = open_dataset("digits")
    assert (len(source.train), len(source.val)) == (1437, 360)
    assert source.class_names == tuple("0123456789")


def test_the_digits_are_held_out_in_equal_shares() -> None:
    val = open_digits().val
    counts = Counter(val.label(i) for i in range(len(val)))
    assert min(counts.values()) >= 34
    assert max(counts.values()) <= 38


def test_the_split_never_changes() -> None:
    val = open_digits().val
    assert [val.label(i) for i in range(12)] == [1, 6, 7, 8, 5, 8, 1, 7, 8, 3, 3, 4]


def test_images_are_8_bit_grey_and_use_the_whole_range() -> None:
    source = open_digits()
    image = source.train.image(0)
    assert (image.mode, image.size) == ("L", (8, 8))
    brightest = [np.asarray(source.train.image(i)).max() for i in range(50)]
    assert max(brightest) == 255


def test_no_scan_is_in_both_parts() -> None:
    source = open_digits()
    train = {source.train.image(i).tobytes() for i in range(len(source.train))}
    val = {source.val.image(i).tobytes() for i in range(len(source.val))}
    assert not train & val


def test_digits_are_not_mirrored() -> None:
    assert open_digits().hflip is False


def test_without_scikit_learn_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'convattn\[train\]'"):
        open_digits()
