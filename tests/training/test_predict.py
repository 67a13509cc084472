from __future__ import annotations

import pytest
import torch
from torch import nn

from convattn.runs.predictions import ClassPrediction, Guess
from convattn.training.predict import ready, split

CPU = torch.device("cpu")


def test_a_model_that_is_ready_is_not_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    assert ready(model, CPU) is model


def test_another_model_is_copied_and_left_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    model[1].train()
    found = ready(model, CPU)
    assert not found[1].training  # type: ignore[index]
    assert model[1].training
    moved = ready(model.eval(), torch.device("meta"))
    assert next(moved.parameters()).is_meta
    assert not next(model.parameters()).is_meta


def test_failures_are_apart_unless_there_is_nothing_else() -> None:
    good = ClassPrediction(path="a", size=(1, 1), guesses=(Guess("cat", 1.0),))
    bad = ClassPrediction(path="b", size=(0, 0), error="it is empty")
    images, broken = split([good, bad])
    assert images == [good]
    assert [(file.path, file.reason) for file in broken] == [("b", "it is empty")]
    with pytest.raises(ValueError, match=r"none of the 2 images .*: b: it is empty"):
        split([bad, bad])
    assert split([]) == ([], [])
