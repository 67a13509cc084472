"""The linear layer of the heads is PyTorch's in all but the path that it takes."""

from __future__ import annotations

import torch
from torch import nn

from convattn.layers.linear import Linear
from tests.compare import assert_same


def test_equals_the_linear_layer_of_torch():
    ours, theirs = Linear(12, 20).double(), nn.Linear(12, 20).double()
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, nn.Linear)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(ours, theirs, [torch.randn(2, 5, 12, dtype=torch.float64)])
