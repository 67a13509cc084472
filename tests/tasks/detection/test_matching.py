from __future__ import annotations

from typing import Any

import pytest

from convattn.tasks.detection.matching import match
from tests.tasks.detection.random_objects import objects_of

CAT, DOG, NOTHING = 0, 1, 2
LEFT, RIGHT = [10, 10, 50, 50], [70, 10, 110, 50]
ON_LEFT = [12, 10, 52, 50]  # IoU 0.9 with the left box


@pytest.mark.parametrize(
    ("boxes", "labels", "scores", "pairs", "counts"),
    [
        ([LEFT, RIGHT], [CAT, DOG], [0.9, 0.8], {(0, 0): 1, (1, 1): 1}, (2, 0, 0)),
        ([], [], [], {(0, 2): 1, (1, 2): 1}, (0, 2, 0)),
        ([LEFT, RIGHT], [DOG, DOG], [0.9, 0.8], {(0, 1): 1, (1, 1): 1}, (1, 1, 1)),
        # The second box on the same object is one too many.
        ([LEFT, ON_LEFT], [CAT, CAT], [0.8, 0.9], {(0, 0): 1, (2, 0): 1, (1, 2): 1}, (1, 1, 1)),
        # A box of the right class has the object, though another has a higher score.
        ([ON_LEFT, LEFT], [DOG, CAT], [0.9, 0.4], {(0, 0): 1, (2, 1): 1, (1, 2): 1}, (1, 1, 1)),
        # Too low a score, and too small an IoU.
        ([LEFT], [CAT], [0.1], {(0, 2): 1, (1, 2): 1}, (0, 2, 0)),
        ([[40, 10, 80, 50]], [CAT], [0.9], {(2, 0): 1, (0, 2): 1, (1, 2): 1}, (0, 2, 1)),
    ],
)
def test_found_objects_belong_to_true_ones(
    boxes: Any,
    labels: Any,
    scores: Any,
    pairs: dict[tuple[int, int], int],
    counts: tuple[int, int, int],
) -> None:
    target = objects_of([LEFT, RIGHT], [CAT, DOG])
    found = match(objects_of(boxes, labels, scores=scores), target, 0.25, NOTHING)
    assert found.pairs == pairs
    assert (found.right, found.missed, found.false) == counts


def test_an_object_found_in_a_crowd_of_its_class_does_not_count() -> None:
    target = objects_of([LEFT, [60, 0, 160, 100]], [CAT, DOG], crowd=[False, True])
    for label, false in ((DOG, 0), (CAT, 1)):
        found = objects_of([LEFT, [70, 10, 90, 30]], [CAT, label], scores=[0.9, 0.8])
        matches = match(found, target, 0.25, NOTHING)
        assert (matches.right, matches.missed, matches.false) == (1, 0, false)
