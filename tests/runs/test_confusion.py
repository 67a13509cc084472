from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from convattn.runs.confusion import Confusion


def test_images_are_counted_by_true_and_predicted_class() -> None:
    confusion = Confusion.of(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 2, 2, 0]), 3)
    assert confusion == [[1, 0, 2], [0, 0, 0], [1, 0, 0]]
    assert confusion[0][2] == 2
    assert confusion[1:] == [[0, 0, 0], [1, 0, 0]]
    assert confusion.row(0) == {0: 1, 2: 2}
    assert confusion != [[1, 0, 2], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("classes", [2, 100, 101, 3000])
def test_a_confusion_survives_json(classes: int) -> None:
    labels = torch.arange(classes)
    confusion = Confusion.of(labels, (labels * 7) % classes, classes)
    text = json.dumps(confusion.to_json())
    assert Confusion.from_json(json.loads(text)) == confusion
    assert len(text) < 100_000


def test_few_classes_are_written_as_rows() -> None:
    assert Confusion(2, [(0, 1, 3)]).to_json() == [[0, 3], [0, 0]]


def test_no_images_give_no_counts() -> None:
    empty = torch.tensor([], dtype=torch.int64)
    assert list(Confusion.of(empty, empty, 2).counts()) == []


@pytest.mark.parametrize(
    "value",
    [
        3,
        [[1, 2]],
        [["a"]],
        [3],
        {"classes": 2},
        {"classes": 2, "counts": [[0, 2, 1]]},
        {"classes": 2, "counts": [[0, -1, 1]]},
        {"classes": 2, "counts": [[0, 1]]},
        {"classes": 2, "counts": [[0, 1, "x"]]},
        {"classes": "x", "counts": []},
    ],
)
def test_another_value_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="a confusion is rows of counts or a list"):
        Confusion.from_json(value)
