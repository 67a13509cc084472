from __future__ import annotations

import math

import pytest

from convattn.runs.metrics import BASE_COLUMNS, best_epoch, score

RULE = ("val_top1", "-val_loss")


def test_more_is_better_and_less_where_the_name_begins_with_a_minus() -> None:
    assert score({"val_top1": 0.5, "val_loss": 2.0}, RULE) == (0.5, -2.0)


@pytest.mark.parametrize("name", ["val_top1", "-val_loss"])
def test_nan_and_a_missing_metric_are_the_worst(name: str) -> None:
    assert score({name.removeprefix("-"): math.nan}, (name,)) == score({}, (name,)) == (-math.inf,)


def test_the_best_epoch_is_the_first_among_equals() -> None:
    rows = [
        {"epoch": 1.0, "val_top1": 0.5, "val_loss": 1.0},
        {"epoch": 2.0, "val_top1": 0.75, "val_loss": 3.0},
        {"epoch": 3.0, "val_top1": 0.75, "val_loss": 2.0},
        {"epoch": 4.0, "val_top1": 0.75, "val_loss": 2.0},
        {"epoch": 5.0, "val_top1": math.nan, "val_loss": 0.1},
        {"epoch": 6.0, "val_top1": 0.75, "val_loss": math.nan},
    ]
    assert best_epoch(rows, RULE) is rows[2]
    assert best_epoch(rows, ("-val_loss",)) is rows[4]


def test_without_a_number_no_epoch_is_the_best() -> None:
    assert best_epoch([], RULE) is None
    assert best_epoch([{"epoch": 1.0}, {"epoch": 2.0, "val_top1": math.nan}], RULE) is None


def test_every_task_has_the_same_first_columns() -> None:
    names = [column.name for column in BASE_COLUMNS]
    assert names == ["epoch", "step", "lr", "images_per_second"]
