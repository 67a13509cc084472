"""The classes that the values of masks stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convattn.data import IGNORED, UnknownClassesError
from convattn.data.segments.class_values import (
    ClassValues,
    find_class_list,
    ranges,
    read_class_list,
)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([3], "3"),
        ([0, 1, 2], "0 to 2"),
        ([0, 1, 2, 7], "0 to 2 and 7"),
        ([0, 2, 4], "0, 2 and 4"),
        (list(range(0, 60, 2)), "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, more and 58"),
    ],
)
def test_values_are_written_as_ranges(values: list[int], text: str) -> None:
    assert ranges(values) == text


def test_a_list_has_a_line_for_the_ignored_value() -> None:
    classes = ClassValues.of_list(["a", "void", "b"], ignored=1)
    assert classes.names == ("a", "b")
    assert classes.table(classes.numbers(None))[:4].tolist() == [0, IGNORED, 1, IGNORED]
    assert np.flatnonzero(classes.known).tolist() == [0, 1, 2]


def test_the_classes_of_a_model_skip_the_ignored_value() -> None:
    classes = ClassValues.of_classes(["a", "b", "c"], ignored=1)
    assert classes.values == (0, 2, 3)


def test_numbers_follow_the_list_of_a_model() -> None:
    classes = ClassValues.of_list(["a", "b"], ignored=255)
    assert classes.numbers(["b", "c", "a"]) == [2, 0]
    with pytest.raises(UnknownClassesError, match="'b'"):
        classes.numbers(["a", "c"])


@pytest.mark.parametrize("count", [0, 256])
def test_masks_of_8_bits_have_at_most_255_classes(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} classes"):
        ClassValues.of_classes([str(number) for number in range(count)], ignored=255)


def test_a_list_of_classes_is_found_by_its_name(tmp_path: Path) -> None:
    assert find_class_list(tmp_path) is None
    (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\ncup\n")
    found = find_class_list(tmp_path)
    assert found is not None
    assert read_class_list(found) == ["_background_", "cup"]
    found.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"cannot read class names from .*class_names\.txt"):
        read_class_list(found)
