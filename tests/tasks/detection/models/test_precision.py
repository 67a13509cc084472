from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tasks.detection.models.scenes import METHODS, SIZES, images, small, targets


def rounded(boxes: Tensor) -> Tensor:
    return boxes.bfloat16().float()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_boxes_and_losses_are_float32_under_autocast(method, dtype):
    model = small(method, score=0.0)
    with torch.autocast("cpu", dtype):
        losses = model(images(), targets(), SIZES)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found = model(images())[0]
    assert {v.dtype for v in found.values()} == {torch.float32, torch.int64}
    inside = found["boxes"][(found["boxes"] > 0) & (found["boxes"] < 64)]
    assert (inside != rounded(inside)).any()


@pytest.mark.parametrize("method", METHODS)
def test_weights_may_be_bfloat16(method):
    model = small(method, score=0.0).bfloat16()
    every = targets()
    torch.set_default_dtype(torch.bfloat16)  # as in a training with precision=bf16-true
    try:
        losses = model(images().bfloat16(), every, SIZES)
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        sum(losses.values()).backward()
        with torch.no_grad():
            found = model.eval()(images().bfloat16())[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert {v.dtype for v in found.values()} == {torch.float32, torch.int64}


def test_targets_are_not_rounded_under_autocast():
    model = small("retinanet")
    every = targets()
    every[0]["boxes"] = every[0]["boxes"] + 0.3
    x = images()
    plain = model.eval().train()(x, every, SIZES)["box"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x, every, SIZES)["box"]
    torch.testing.assert_close(mixed, plain, rtol=0.02, atol=0)
