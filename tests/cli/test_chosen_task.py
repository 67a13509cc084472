from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from convattn.cli import main
from convattn.cli.chosen_task import chosen_method, chosen_task


def given(**values: Any) -> argparse.Namespace:
    """Return the arguments of ``convattn train``."""
    nothing: dict[str, Any] = {"task": None, "method": None, "recipe": None, "settings": []}
    return argparse.Namespace(**{**nothing, **values})


@pytest.mark.parametrize(
    ("values", "task", "method"),
    [
        ({}, "classification", None),
        ({"task": "detection"}, "detection", None),
        ({"method": "mask_rcnn"}, "detection", "mask_rcnn"),
        ({"method": "upernet"}, "segmentation", "upernet"),
        ({"settings": ["method=retinanet", "epochs=3"]}, "detection", "retinanet"),
        ({"settings": ["task=segmentation"]}, "segmentation", None),
        ({"task": "detection", "method": "retinanet"}, "detection", "retinanet"),
        ({"recipe": "coco_1x"}, "detection", None),
        ({"recipe": "finetune"}, "classification", None),
        ({"recipe": "no_such_recipe"}, "classification", None),
    ],
)
def test_the_task_is_that_of_the_option_the_method_or_the_recipe(
    values: dict[str, Any], task: str, method: str | None
) -> None:
    args = given(**values)
    assert (chosen_task(args), chosen_method(args)) == (task, method)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("epochs: 3\n", "classification"),
        ("epochs: 3\ntask: detection # boxes\n", "detection"),
        ("method: 'upernet'\n", "segmentation"),
        ("# task: detection\nmodel_args:\n  task: detection\n", "classification"),
    ],
)
def test_a_recipe_file_may_name_the_task(tmp_path: Path, text: str, task: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert chosen_task(given(recipe=str(path))) == task


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "detect"], "unknown task 'detect'; did you mean 'detection'?"),
        (["--method", "mask_rcn"], "unknown method 'mask_rcn'; did you mean 'mask_rcnn'?"),
        (
            ["--task", "detection", "--method", "masc_rcnn"],
            "unknown method of detection 'masc_rcnn'; did you mean 'mask_rcnn'?",
        ),
        (
            ["--task", "segmentation", "--method", "mask_rcnn"],
            "mask_rcnn is a method of detection, not of segmentation: leave --task out",
        ),
        (
            ["--task", "classification", "--method", "resnet"],
            "classification has no methods: leave --method resnet out",
        ),
        (
            ["--method", "mask_rcnn", "--recipe", "finetune"],
            "the recipe finetune is for classification, not for detection; recipes for detection:",
        ),
        (["--recipe", "small"], "'detection', 'segmentation' have a recipe 'small': add --task"),
        (["--method", "retinanet"], "data is not set; write data=VALUE"),
        (["--task", "detection", "epoch=3"], "unknown setting 'epoch'; did you mean 'epochs'"),
        (["--method", "retinanet", "--nmss", "0.5"], "written without dashes: nms=0.5"),
        (["--resume", "runs/x", "--method", "retinanet"], "leave --method out"),
        (["--settings", "--data", "x"], "--settings only prints a list: leave --data out"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("words", [["--task", "detection"], ["--method", "retinanet"]])
def test_each_task_has_its_settings_and_recipes(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--settings", *words]) == 0
    assert "  nms=0.5\n" in capsys.readouterr().out
    assert main(["train", "--recipes", *words]) == 0
    assert capsys.readouterr().out.split() == ["coco_1x", "coco_3x", "scenes", "small"]
