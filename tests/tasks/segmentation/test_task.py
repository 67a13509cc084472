from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convattn.data import READABLE, Batch, DataSource, Sample
from convattn.tasks.segmentation.config import SegmentationConfig
from convattn.tasks.segmentation.models import METHODS, Segmenter
from convattn.tasks.segmentation.task import Segmentation
from convattn.tasks.table import load_config
from convattn.training.evaluate import evaluate
from convattn.training.trained import Checkpoint
from tests.tasks.segmentation.shapes import CLASSES, TINY, scenes, tiny

BACKBONES = (
    "glnet_nano",
    "acmix_resnet_nano",
    "acmix_pvt_nano",
    "acmix_swin_nano",
    "acmix_san_nano",
    "xvolution_resnet_nano",
)


def built(source: DataSource | None = None, **settings: Any) -> tuple[Segmentation, Checkpoint]:
    torch.manual_seed(0)
    task = Segmentation(tiny(**settings), source or scenes())
    found = task.build()
    return task, Checkpoint(found.model, found.card, Path("test"))


def training_batch(task: Segmentation, card: Any, indices: tuple[int, ...] = (0, 1)) -> Batch:
    transform, images = task.train_transform(card.preprocess), task.source.train
    samples = []
    for index in indices:
        image, target = transform(images.image(index), images.target(index))
        samples.append(
            Sample(image=image, target=target, index=index, status=READABLE, size=(48, 64))
        )
    return task.collate(samples)


@pytest.mark.parametrize("model", BACKBONES)
@pytest.mark.parametrize("method", METHODS)
def test_one_training_step_and_one_evaluation(method, model):
    task, loaded = built(method=method, model=model)
    network = loaded.model.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    step = task.losses(network, training_batch(task, loaded.card), 0)
    step.loss.backward()
    optimizer.step()
    assert step.loss.item() == pytest.approx(
        math.log(3) * (1.4 if "aux" in step.losses else 1), rel=0.2
    )
    found: Any = evaluate(Segmentation, loaded, task.source, batch_size=2, workers=0, device="cpu")
    assert found.images == 2
    assert 0 <= found.mean_iou <= found.mean_accuracy <= 1
    assert sum(row.pixels for row in found.per_class) == 64 * 47 + 50 * 69


def test_training_learns_the_scenes():
    task, loaded = built(model="resnet10t", photometric=False, scale=[1.0, 1.0])
    model = loaded.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = evaluate(Segmentation, loaded, task.source, workers=0, device="cpu")
    for _ in range(25):
        model.train()
        batch = training_batch(task, loaded.card, (0, 1, 2, 3))
        optimizer.zero_grad()
        task.losses(model, batch, 0).loss.backward()
        optimizer.step()
    after: Any = evaluate(Segmentation, loaded, task.source, workers=0, device="cpu")
    assert after.mean_iou > 0.5 > before.to_dict()["mean_iou"]


@pytest.mark.parametrize("settings", [{}, {"inference": "slide", "window": 32}, {"flip": True}])
def test_result_does_not_depend_on_the_batch(settings):
    source = scenes(sizes=((64, 48), (50, 70), (200, 64), (30, 20)))
    _, loaded = built(source, method="upernet", **settings)
    results = [
        evaluate(Segmentation, loaded, source, batch_size=size, workers=0, device="cpu").to_dict()
        for size in (1, 3)
    ]
    for result in results:
        del result["images_per_second"]
    assert results[0] == results[1]


def test_validation_and_evaluation_agree():
    task, loaded = built()
    meter = task.meter(loaded.card)
    transform = task.eval_transform(loaded.card.preprocess)
    samples = []
    for index in range(2):
        image = task.source.val.image(index)
        tensor, target = transform(image, task.source.val.target(index))
        samples.append(
            Sample(image=tensor, target=target, index=index, status=READABLE, size=image.size[::-1])
        )
    batch = task.collate(samples)
    sizes = [task.source.val.image(index).size for index in range(2)]
    outputs = task.outputs(loaded.model.eval(), batch["image"], sizes, loaded.card)
    meter.update(*task.kept(outputs, batch["target"]))
    found: Any = evaluate(Segmentation, loaded, task.source, workers=0, device="cpu")
    metrics = meter.compute()
    assert metrics["miou"].item() == pytest.approx(found.mean_iou)
    assert metrics["acc"].item() == pytest.approx(found.pixel_accuracy)
    assert metrics["macc"].item() == pytest.approx(found.mean_accuracy)
    assert {f"val_{name}" for name in metrics} == {
        c.name for c in task.columns("") if c.name.startswith("val_")
    }


def test_card_rebuilds_the_model():
    task, loaded = built(method="upernet", channels=24, auxiliary=0.2, drop_path=0.1, flip=True)
    again = Segmentation.rebuild(type(loaded.card).from_json(loaded.card.to_json()))
    assert isinstance(again, Segmenter)
    again.load_state_dict(loaded.model.state_dict())
    assert again.auxiliary_weight == 0.2
    assert again.inference.flip
    assert (loaded.card.task, loaded.card.method) == ("segmentation", "upernet")
    assert loaded.card.class_names == task.source.class_names
    assert loaded.card.preprocess.short_side == 64
    assert loaded.card.preprocess.interpolation == "bilinear"


def predicted(loaded: Checkpoint, **options: Any) -> Any:
    """Return the predictions of two blank images, of 100 x 80 and 64 x 64 pixels."""
    images, sizes = torch.randn(2, 3, 64, 96), [(100, 80), (64, 64)]
    with torch.inference_mode():
        return Segmentation.predict(loaded.model.eval(), images, sizes, loaded.card, **options)


def test_prediction_is_a_mask_at_the_original_size():
    _, loaded = built()
    first, second = predicted(loaded)
    assert first.mask.shape == (80, 100)
    assert second.mask.shape == (64, 64)
    assert set(first.classes) <= set(CLASSES)
    assert sum(first.classes.values()) == pytest.approx(1)


def test_options_of_a_prediction_replace_those_of_the_card():
    _, loaded = built(inference="slide", window=64, window_stride=64)
    torch.manual_seed(1)
    by_card = predicted(loaded)
    torch.manual_seed(1)
    same = predicted(loaded, inference="slide", window=64, window_stride=64, flip=False)
    torch.manual_seed(1)
    other = predicted(loaded, inference="slide", window=32, flip=True)
    assert by_card == same
    assert by_card != other
    with pytest.raises(ValueError, match="window must be a multiple of 32"):
        predicted(loaded, window=50)
    with pytest.raises(ValueError, match="window_stride has no effect on whole images"):
        predicted(loaded, inference="whole", window_stride=32)
    with pytest.raises(ValueError, match="unknown inference 'slid'; did you mean 'slide'"):
        predicted(loaded, inference="slid")


def test_nan_is_an_error_of_the_prediction_and_wrong_in_the_evaluation():
    task, loaded = built()
    model: Any = loaded.model
    torch.nn.init.constant_(model.head.classifier.bias, math.nan)
    assert [p.error for p in predicted(loaded)] == ["the model computed NaN for this image"] * 2
    found: Any = evaluate(Segmentation, loaded, task.source, workers=0, device="cpu")
    assert (found.mean_iou, found.pixel_accuracy) == (0, 0)


def test_ignored_classes_are_neither_learnt_nor_counted_nor_predicted():
    task, loaded = built(ignored_classes=["wall"], hflip=0.0)
    model: Any = loaded.model
    torch.nn.init.constant_(model.head.classifier.bias[1:2], 50.0)  # it would always be the wall
    for prediction in predicted(loaded):
        assert "wall" not in prediction.classes
    found: Any = evaluate(Segmentation, loaded, task.source, workers=0, device="cpu")
    assert found.per_class[1].pixels == 0
    assert found.confusion[1] == [0, 0, 0]
    batch = training_batch(task, loaded.card)
    batch["target"] = torch.full_like(torch.stack([*batch["target"]]), 1)
    assert task.losses(model.train(), batch, 0).loss.item() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ignored_classes": ["wal"]}, "did you mean 'wall'"),
        ({"ignored_classes": list(CLASSES)}, "leave at least one class"),
        ({"model": "acmix_deit_nano"}, "strides"),
        ({"model": "glnet_nan"}, "did you mean 'glnet_nano'"),
        ({"model_args": {"depth": 3}}, "model_args.depth=3 does not fit glnet_nano"),
    ],
)
def test_what_does_not_fit_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        built(**settings)


def test_rate_of_a_recipe_that_the_backbone_does_not_have_is_left_out(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("drop_path: 0.1\n")
    config = load_config("segmentation", recipe, {**TINY, "model": "densenet121", "channels": 8})
    assert isinstance(config, SegmentationConfig)
    found = Segmentation(config, scenes()).build()
    assert found.start == ("drop_path=0.1 is left out: densenet121 has no argument drop_path_rate",)
    assert found.card.model_args["backbone_args"] == {}


def test_crop_may_have_any_size_and_batches_one_image():
    task, loaded = built(crop=40, method="semantic_fpn")
    batch = training_batch(task, loaded.card, (0,))
    assert batch["image"].shape == (1, 3, 64, 64)
    target = batch["target"][0]
    assert isinstance(target, Tensor)
    assert (target[40:] == 255).all()
    assert task.losses(loaded.model.train(), batch, 0).loss.isfinite()


@pytest.mark.parametrize(
    ("method", "settings", "text"),
    [
        ("semantic_fpn", {"pool_scales": [1, 2]}, r"pool_scales=\[1, 2\]"),
        ("upernet", {"head_channels": 8}, "head_channels=8"),
    ],
)
def test_setting_of_another_method_is_an_error(method, settings, text):
    with pytest.raises(ValueError, match=f"{method} has no setting .*, which {text} sets"):
        Segmentation(tiny(method=method, **settings), scenes()).build()


def test_recipe_may_have_settings_of_another_method(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("pool_scales: [1, 2]\nhead_channels: 8\n")
    for method, own in (("semantic_fpn", "head_channels"), ("upernet", "pool_scales")):
        config: Any = load_config("segmentation", recipe, {**TINY, "method": method})
        arguments = Segmentation(config, scenes()).build().card.model_args
        assert {"head_channels", "pool_scales"} & {*arguments} == {own}
