from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from convattn.ops.acmix.folding import merge_groups, merged_groups
from tests.compare import assert_close


@pytest.mark.parametrize("merged", [1, 2, 3, 6])
def test_merged_groups_compute_the_same(merged):
    sizes = (2, 12, 5, 4), (18, 2, 3, 3)
    x, kernels = (torch.randn(size, dtype=torch.float64) for size in sizes)
    together = merge_groups(kernels, groups=6, merged=merged)
    assert together.shape == (18, 2 * merged, 3, 3)
    assert_close(
        F.conv2d(x, together, groups=6 // merged), F.conv2d(x, kernels, groups=6), torch.float64
    )


@pytest.mark.parametrize(
    ("groups", "outputs", "merged"),
    [(16, 4, 4), (32, 3, 4), (32, 6, 2), (32, 12, 1), (6, 4, 2), (7, 1, 1), (64, 1, 16)],
)
def test_groups_are_merged_up_to_a_vector_of_outputs(groups, outputs, merged):
    assert merged_groups(groups, outputs) == merged
