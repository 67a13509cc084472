"""Image classification as a task: its metric of the validation."""

from __future__ import annotations

import pytest
import torch

from convattn.tasks.classification.task import ClassificationMeter


def test_the_meter_needs_no_float64_which_gpus_of_apple_lack() -> None:
    meter = ClassificationMeter(10)
    assert torch.float64 not in {getattr(meter, name).dtype for name in meter.metric_state}


def test_the_meter_is_as_exact_as_all_images_at_once() -> None:
    scores, labels = 3 * torch.randn(50_000, 10), torch.randint(10, (50_000,))
    meter = ClassificationMeter(10)
    for part in zip(scores.split(64), labels.split(64), strict=True):
        meter.update(*part)
    found = {name: value.item() for name, value in meter.compute().items()}
    best = scores.topk(5).indices == labels[:, None]
    loss = torch.nn.functional.cross_entropy(scores.double(), labels).item()
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["top1"] == pytest.approx(best[:, 0].double().mean().item(), abs=1e-7)
    assert found["top5"] == pytest.approx(best.any(-1).double().mean().item(), abs=1e-7)
