from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convattn.data import Preprocess
from convattn.models import create_model
from convattn.runs.card import ModelCard
from convattn.runs.weights import save_weights
from convattn.tasks.segmentation.task import Segmentation
from convattn.training.task import Built
from tests.tasks.segmentation.shapes import CLASSES, scenes, tiny

BODY = "backbone.body.model."


def filled(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's tensors, each with other values than those of a new model."""
    state = model.state_dict()
    return {k: v + 0.5 if v.is_floating_point() else v for k, v in state.items()}


def card(**changes: Any) -> ModelCard:
    values: dict[str, Any] = {
        "model": "glnet_nano",
        "model_args": {},
        "class_names": ("cat", "dog"),
        "preprocess": Preprocess((3, 64, 64), (0.5,) * 3, (0.5,) * 3),
    }
    return ModelCard(**{**values, **changes})


def built(init: Path, **settings: Any) -> Built:
    return Segmentation(tiny(init=str(init), **settings), scenes()).build()


def test_backbone_starts_from_a_classifier_of_a_run(tmp_path):
    path = tmp_path / "best.safetensors"
    weights = filled(create_model("glnet_nano", num_classes=2))
    save_weights(weights, card(), path)
    found = built(path)
    own = found.model.state_dict()
    body = [key for key in own if key.startswith(BODY)]
    assert len(body) > 50
    assert all(torch.equal(own[key], weights[key.removeprefix(BODY)]) for key in body)
    (note,) = found.start
    assert f"{len(body)} tensors of {path} loaded into the backbone of {len(body)}" in note
    assert "not used: " in note
    assert "head.fc.weight" in note
    assert "neck and heads are new" in note


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_backbone_starts_from_a_file_without_a_card(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    weights = filled(create_model("acmix_resnet_nano"))
    if suffix == ".pth":
        torch.save({"model": weights}, path)
    else:
        save_file(weights, path, metadata={"format": "pt"})
    found = built(path, model="acmix_resnet_nano")
    own = found.model.state_dict()
    assert torch.equal(own["backbone.body.layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])
    assert "fc.weight" in found.start[0]


def test_a_checkpoint_of_the_same_classes_gives_all_tensors(tmp_path):
    path = tmp_path / "best.safetensors"
    first = Segmentation(tiny(method="upernet"), scenes()).build()
    weights = filled(first.model)
    save_weights(weights, first.card, path)
    found = built(path, method="upernet")
    own = found.model.state_dict()
    assert all(torch.equal(own[key], weights[key]) for key in own)
    assert f"{len(own)} of {len(own)} tensors" in found.start[0]
    assert "classifiers are kept" in found.start[0]


def test_a_checkpoint_of_other_classes_gives_all_but_the_classifiers(tmp_path):
    path = tmp_path / "best.safetensors"
    first = Segmentation(tiny(), scenes()).build()
    weights = filled(first.model)
    names = (*CLASSES[:2], "blue thing")  # as many classes, with other names
    save_weights(weights, card(task="segmentation", method="semantic_fpn", class_names=names), path)
    found = built(path)
    own = found.model.state_dict()
    new = {key for key in own if not torch.equal(own[key], weights[key])}
    assert new == {"head.classifier.weight", "head.classifier.bias"}
    assert "the classifiers are new" in found.start[0]


def test_a_checkpoint_of_another_method_gives_the_backbone(tmp_path):
    path = tmp_path / "best.safetensors"
    first = Segmentation(tiny(method="upernet"), scenes()).build()
    save_weights(filled(first.model), first.card, path)
    (note,) = built(path, method="semantic_fpn").start
    assert "loaded into the backbone" in note
    assert "not used" not in note


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "acmix_resnet_nano"}, "the weights of glnet_nano.*write model=glnet_nano"),
        ({"in_chans": 1}, r"shape \(16, 3, 3, 3\) instead of \(16, 1, 3, 3\)"),
    ],
)
def test_weights_that_do_not_fit_are_an_error(tmp_path, settings, message):
    path = tmp_path / "best.safetensors"
    save_weights(filled(create_model("glnet_nano", num_classes=2)), card(), path)
    with pytest.raises(ValueError, match=message):
        built(path, **settings)


def test_tensors_that_the_file_lacks_are_named(tmp_path):
    path = tmp_path / "best.safetensors"
    save_weights(filled(create_model("glnet_nano", num_classes=2)), card(), path)
    (note,) = built(path, model_args={"depths": [1, 1, 2, 3]}).start
    assert "not in the file: stages.3.blocks." in note


def test_heads_of_other_sizes_are_an_error(tmp_path):
    path = tmp_path / "best.safetensors"
    first = Segmentation(tiny(channels=24), scenes()).build()
    save_weights(first.model.state_dict(), first.card, path)
    with pytest.raises(ValueError, match="write the sizes of that run, such as channels="):
        built(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        built(tmp_path / "nowhere")


def test_weights_of_an_unrelated_model_are_an_error(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(create_model("acmix_resnet_nano").state_dict(), path)
    with pytest.raises(ValueError, match=r"init=.*has none of the names"):
        built(path)
