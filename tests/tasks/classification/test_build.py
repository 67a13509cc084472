from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from convattn.data import DataSource, open_dataset
from convattn.runs.weights import save_weights
from convattn.tasks.classification import load_config
from convattn.tasks.classification.build import build_model
from convattn.tasks.classification.config import TrainConfig
from tests.data.class_folders import write_classes
from tests.tasks.classification.runs import tiny

NAMES = ("Größe", "Grund", "klein")


def opened(folder: Path, form: Any, *names: str) -> DataSource:
    write_classes(folder, {unicodedata.normalize(form, name): 2 for name in names})
    return open_dataset(f"folder:{folder}", val_fraction=0.5)


def saved(folder: Path, source: DataSource, *class_names: str) -> tuple[TrainConfig, torch.Tensor]:
    """Save a model with these classes; return settings that start from it, and its head."""
    model, card, _ = build_model(tiny(folder), source)
    save_weights(
        model.state_dict(), replace(card, class_names=class_names), folder / "first.safetensors"
    )
    return tiny(folder, init=str(folder / "first.safetensors")), model.state_dict()["head.weight"]


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_the_head_is_kept_across_forms_of_unicode(tmp_path: Path, forms: tuple[str, str]) -> None:
    source = opened(tmp_path / "a", forms[0], *NAMES)
    config, head = saved(tmp_path, source, *source.class_names)
    model, _, [said] = build_model(config, opened(tmp_path / "b", forms[1], *NAMES))
    assert torch.equal(model.state_dict()["head.weight"], head)
    assert said == (
        f"all {len(model.state_dict())} tensors of {config.init} loaded; the head is kept, as the "
        "3 classes are the same"
    )


def test_the_head_follows_the_order_of_the_classes(tmp_path: Path) -> None:
    source = opened(tmp_path / "a", "NFC", "a", "b", "c")
    config, head = saved(tmp_path, source, "c", "a", "b")
    model, card, _ = build_model(config, source)
    assert card.class_names == ("a", "b", "c")
    assert torch.equal(model.state_dict()["head.weight"], head[[1, 2, 0]])


def test_a_note_says_why_the_head_is_new(tmp_path: Path) -> None:
    source = opened(tmp_path / "a", "NFC", "red", "blue", "\x1b[31m")
    config, _ = saved(tmp_path, source, "red", "blue", "green")
    [said] = build_model(config, source)[2]
    kept, total = map(int, said.split(" tensors")[0].split(" of "))
    assert total - kept == 2  # weight and bias of the head
    assert said.endswith(
        f" tensors of {config.init} loaded; the head is new: the trained model has 3 classes, the "
        r"data has 3; only the model has 'green'; only the data has '\x1b[31m'"
    )
    assert build_model(tiny(tmp_path), source)[2] == []


DEEP, PLAIN = (0.0, 4095.0), None


@pytest.mark.parametrize(
    ("before", "now", "clause"),
    [
        (
            DEEP,
            (0, 255),
            "with value_range 0 to 255 (8 bits), the weights were trained with value_range 0 to "
            "4095 (12 bits)",
        ),
        (PLAIN, DEEP, "with value_range 0 to 4095 (12 bits), the weights were trained without one"),
        (DEEP, PLAIN, "without one, the weights were trained with value_range 0 to 4095 (12 bits)"),
    ],
)
@pytest.mark.parametrize("names", [("a", "b"), ("a", "c")])
def test_a_note_names_the_range_of_values_of_the_weights(
    tmp_path: Path, before: Any, now: Any, clause: str, names: tuple[str, str]
) -> None:
    source = opened(tmp_path / "a", "NFC", "a", "b")
    config, _ = saved(tmp_path, replace(source, value_range=before), *names)
    [said] = build_model(config, replace(source, value_range=now))[2]
    assert said.endswith(f"; the data is read {clause}")


@pytest.mark.parametrize("value_range", [DEEP, PLAIN])
def test_the_same_range_of_values_is_not_mentioned(tmp_path: Path, value_range: Any) -> None:
    source = replace(opened(tmp_path / "a", "NFC", "a", "b"), value_range=value_range)
    config, _ = saved(tmp_path, source, "a", "b")
    assert build_model(config, source)[2][0].endswith("the 2 classes are the same")


def test_the_note_on_pretrained_weights_says_whether_the_head_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(tmp_path / "a", "NFC", "a", "b")
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_vit").state_dict(), weights)
    overlay = {"pretrained_cfg_overlay": {"file": str(weights)}}
    config = tiny(tmp_path, pretrained=True, model_args=overlay)
    assert build_model(config, source)[2] == [
        "pretrained weights of test_vit loaded; the head is new: the weights have 1000 classes, "
        "the data 2"
    ]


@pytest.mark.parametrize("name", ["densenet121", "hrnet_w18_small"])
def test_a_recipes_drop_path_is_left_out_of_a_model_without_it(tmp_path: Path, name: str) -> None:
    source = opened(tmp_path / "a", "NFC", "a", "b")
    given = {"model": name, "img_size": 32, "from_scratch": True}
    model, card, notes = build_model(load_config("finetune", given), source)
    assert notes == [f"drop_path=0.1 is left out: {name} has no argument drop_path_rate"]
    assert card.model_args == {}
    assert model.training


def test_a_class_name_with_a_line_break_is_shown_on_one_line(tmp_path: Path) -> None:
    source = opened(tmp_path / "a", "NFC", "a", "b\nc")
    config, _ = saved(tmp_path, source, "a", "d\ne")
    [note] = build_model(config, source)[2]
    assert note.isprintable()
    assert r"only the data has 'b\nc'" in note


def test_a_size_that_does_not_fit_the_model_is_named(tmp_path: Path) -> None:
    source = opened(tmp_path / "a", "NFC", "a", "b")
    with pytest.raises(
        ValueError, match=r"test_vit does not support images of 3x30x30; .* img_size \("
    ):
        build_model(tiny(tmp_path, img_size=30), source)


@pytest.mark.parametrize(
    ("model", "arguments", "reason"),
    [
        ("resnet18", {"features_only": True}, "its output is no score per class"),
        ("resnet18", {"layers": [1, 1]}, "with an image of 3x32x32, "),
        ("resnet18", {"num_features": 3}, "ResNet.__init__() got an unexp"),
    ],
)
def test_arguments_that_change_the_output_are_named(
    tmp_path: Path, model: str, arguments: dict[str, Any], reason: str
) -> None:
    source = opened(tmp_path / "a", "NFC", "a", "b")
    config = load_config(None, {"model": model, "model_args": arguments, "img_size": 32})
    [(name, value)] = arguments.items()
    message = re.escape(f"model_args.{name}={value} does not fit {model}: {reason}")
    with pytest.raises(ValueError, match=f"^{message}"):
        build_model(config, source)


def test_weights_for_grey_images_are_not_loaded_for_colour(tmp_path: Path) -> None:
    source = opened(tmp_path / "a", "NFC", "a", "b")
    model, card, _ = build_model(tiny(tmp_path, in_chans=1), source)
    save_weights(model.state_dict(), card, tmp_path / "grey.safetensors")
    config = tiny(tmp_path, init=str(tmp_path / "grey.safetensors"))
    with pytest.raises(ValueError, match=r"images with 1 channel, not 3; write in_chans=1$"):
        build_model(config, source)
    build_model(tiny(tmp_path, init=config.init, in_chans=1), source)


def test_weights_of_a_model_with_other_arguments_name_these(tmp_path: Path) -> None:
    source = opened(tmp_path / "a", "NFC", "a", "b")
    model, card, _ = build_model(tiny(tmp_path, model_args={"depth": 2}), source)
    save_weights(model.state_dict(), card, tmp_path / "deep.safetensors")
    config = tiny(tmp_path, init=str(tmp_path / "deep.safetensors"))
    with pytest.raises(ValueError, match=r"do not fit test_vit; write model_args\.depth=2$"):
        build_model(config, source)
