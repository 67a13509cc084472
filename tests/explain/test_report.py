from __future__ import annotations

import json
import os
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from convattn.explain import report
from convattn.explain.page import Pictures
from convattn.layers.glmix import GLMixBlock
from convattn.tasks.classification.report import PARTS
from tests.explain.pages import Page
from tests.explain.runs import write_run, write_table


def square(index: int) -> Image.Image:
    return Image.new("RGB", (32, 24), (index * 20 % 256, 0, 90))


def write_report(
    run: Path,
    *,
    image: Callable[[int], Image.Image] | None = None,
    model: nn.Module | None = None,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    **options: Any,
) -> Path:
    """Write the report of a classifier."""
    pictures = image and Pictures(image=image, model=model, preprocess=preprocess)
    return report.write_report(run, parts=PARTS, pictures=pictures or None, **options)


def test_the_page_holds_the_numbers_of_the_run(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "first-run"), seconds=134.2)
    assert path == tmp_path / "first-run" / "report.html"
    words = Page(path).words
    for number in ("83.33%", "0.1235", "2,143", "187,432", "2 min 14 s", "12 validation"):
        assert number in words, number
    assert "glnet_nano on insects" in words
    assert "2026-01-02 03:04" in words
    assert "Started with convattn train --data insects" in words
    assert "gpus none" in words
    assert "Best epoch: 3 of 3, validation top-1 92.59%" in words
    assert (path.parent / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_metric_leads_and_parameters_and_speed_come_last(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    values = json.loads((run / "evaluation.json").read_text())
    mixed = ["images_per_second", "parameters", "loss", "top5", "top1"]
    values = {**{key: values.pop(key) for key in mixed}, "recall": 0.5, **values}
    (run / "evaluation.json").write_text(json.dumps(values))
    for best, first in ((("val_top1", "-val_loss"), "83.33%"), (("-val_loss",), "0.1235")):
        words = Page(write_report(run, best=best)).words
        metrics = sorted(("0.1235", "50.00%", "83.33%"), key=lambda text: text != first)
        places = [words.index(text) for text in (*metrics, "187,432", "2,143")]
        assert places[0] == min(places), best
        assert places[-2:] == sorted(places)[-2:], best


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path / "run"), image=square)
    page = Page(path)
    assert page.pictures() == 2
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert not {"script", "link", "iframe"} & set(page.elements)
    assert not re.search(r"@import|url\((?!#)", path.read_text())


def test_ids_are_unique(tmp_path: Path) -> None:
    ids = Page(write_report(write_run(tmp_path / "run"))).ids
    assert len(ids) == len(set(ids))


def test_the_most_confident_mistakes_come_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    words = Page(write_report(run, image=square)).words
    assert "2 of 12 validation images are classified wrongly" in words
    first, second = words.index("87.5%"), words.index("62.5%")
    assert first < second


def test_many_mistakes_are_shown_in_part(tmp_path: Path) -> None:
    mistakes = [(index, 2, 0.99 - index / 100) for index in range(30)]
    run = write_run(tmp_path / "run", images_per_class=30, mistakes=mistakes)
    page = Page(write_report(run, image=square))
    assert page.pictures() == 24
    assert "The 24 most confident" in page.words
    assert "75.0%" not in page.words


def test_mistakes_are_listed_in_words_without_images(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "run")))
    assert page.pictures() == 0
    assert "val/5.png bee ant 87.5%" in page.words


def test_names_and_paths_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    run = write_run(tmp_path / "a & b", class_names=(evil, '"><img src=x>', "$cat$"))
    (run / "config.yaml").write_text(f"model: {evil}\n")
    (run / "broken_images.txt").write_text(f"{evil}.png\n")
    page = Page(write_report(run, image=square))
    assert "script" not in page.elements
    assert page.pictures() == 2
    assert page.words.count(evil) >= 4
    assert "$cat$" in page.words


def test_a_perfect_run_says_that_nothing_is_wrong(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "run", mistakes=()), image=square))
    assert "100.00%" in page.words
    assert "There are none: all 12 validation images are classified correctly" in page.words
    assert "No two classes are confused" in page.words


@pytest.mark.parametrize("classes", [2, 30, 31, 200])
def test_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    names = [f"kind {i}" for i in range(classes)]
    run = write_run(tmp_path / "run", class_names=names, mistakes=[(0, 1, 0.5)])
    words = Page(write_report(run)).words
    assert (f"The 15 hardest of {classes} classes" in words) == (classes > 30)
    assert ("98.76%" in words) == (classes > 5)  # of five, the right one is always among five
    assert f"kind {classes - 1} 4 100.0%" in words
    assert "kind 0 kind 1 1 25.0%" in words


def test_a_class_without_images_has_no_accuracy(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["per_class"][2] = {"name": "cat", "images": 0, "accuracy": None}
    evaluation["confusion"][2] = [0, 0, 0]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    words = Page(write_report(run)).words
    table = words[words.index("Accuracy by class") : words.index("Confusion matrix")]
    assert "bee 4 75.0%" in table
    assert "cat 0" not in table


def test_a_run_without_evaluation_shows_its_curves_and_configuration(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").unlink()
    (run / "predictions.csv").unlink()
    page = Page(write_report(run, image=square))
    assert "no evaluation yet" in page.words
    assert "glnet_nano on insects" in page.words
    assert "best validation top-1 so far 92.59%" in page.words
    assert "Wrong examples" not in page.words
    assert page.elements.count("svg") == 3


def test_an_empty_folder_gives_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path))
    assert "no evaluation yet" in page.words
    assert "neither configuration nor environment" in page.words
    assert not (tmp_path / "curves.png").exists()


def test_epochs_without_validation_or_with_diverged_loss(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.csv").write_text(
        "epoch,step,lr,train_loss,train_acc,val_loss,val_top1\n0,9,0.1,nan,,,\n1,18,0.1,inf,,,\n"
    )
    assert "No epoch has been validated" in Page(write_report(run)).words


def test_broken_images_are_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "broken_images.txt").write_text("train/ant/7.png\ntrain/bee/9.png\n")
    words = Page(write_report(run)).words
    assert "2, skipped in training" in words
    assert "train/bee/9.png" in words


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-run"):
        write_report(tmp_path / "no-such-run")


@pytest.mark.parametrize(
    "name",
    ["metrics.csv", "evaluation.json", "predictions.csv", "environment.json", "config.yaml"],
)
@pytest.mark.parametrize("content", [b"", b"\0\xff\xfe damaged", b"a,b\n1,2\n", b"[1, {}]"])
def test_a_damaged_file_does_not_prevent_the_page(
    tmp_path: Path, name: str, content: bytes
) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_bytes(content)
    page = Page(write_report(run, image=square))
    assert name == "config.yaml" or f"{name} is damaged" in page.words
    assert "glnet_nano" in page.words
    assert "Setup" in page.words


def test_an_epoch_without_a_number_leaves_out_the_curves_only(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.csv").write_text("epoch,lr,val_top1\n1,0.1,0.5\n,0.1,0.75\n")
    words = Page(write_report(run)).words
    assert "This page has no curves: KeyError: 'epoch'" in words
    assert "83.33%" in words


def test_the_best_epoch_and_the_numbers_are_those_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,lr,train_loss,val_map,val_error\n1,9,.1,3,.25,7\n2,18,.1,2,.75,5\n3,27,.1,1,.5,4\n"
    )
    words = Page(write_report(tmp_path, best=("val_map",))).words
    assert "Best epoch: 2 of 3, validation AP 75.00%" in words
    words = Page(write_report(tmp_path, best=("-val_error",))).words
    assert "Best epoch: 3 of 3, validation error 4" in words
    evaluation = {"model": "m", "map": 0.625, "loss": 0.5, "boxes": 1234.5, "images": 7}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    words = Page(write_report(tmp_path, best=("val_map",))).words
    assert "AP 62.50% validation loss 0.5000 boxes 1,23" in words


def test_images_that_cannot_be_read_are_listed_by_name(tmp_path: Path) -> None:
    def image(index: int) -> Image.Image:
        if index == 5:
            raise FileNotFoundError("5.png")
        return square(index)

    page = Page(write_report(write_run(tmp_path / "run"), image=image))
    assert page.pictures() == 1
    assert "1 of 2 wrong examples have no picture" in page.words
    assert "val/5.png" in page.words


def test_a_model_that_fails_leaves_out_the_slot_maps_only(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    page = Page(
        write_report(run, model=TinyGLNet(), image=square, preprocess=lambda _: torch.ones(2, 8, 8))
    )
    assert "This page has no slot maps: RuntimeError" in page.words
    assert "83.33%" in page.words


def test_without_matplotlib_the_page_has_no_charts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # importing it fails
    page = Page(write_report(write_run(tmp_path / "run")))
    assert "This page has no curves" in page.words
    assert "This page has no confusion matrix" in page.words
    assert "83.33%" in page.words


def test_names_that_are_not_valid_unicode_are_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", class_names=("caf\udce9", "\x1b[2J", "c\nd"))
    (run / "predictions.csv").write_bytes(
        b"index,path,label,predicted,probability,label_probability\n0,caf\xe9.png,0,1,0.5,0.1\n"
    )
    words = Page(write_report(run)).words
    assert r"caf\udce9.png" in words
    assert r"\x1b[2J" in words


def test_a_page_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    before = write_report(run).read_bytes(), (run / "curves.png").read_bytes()
    (run / "metrics.csv").write_text("epoch,lr\n1,0.5\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(run)
    assert ((run / "report.html").read_bytes(), (run / "curves.png").read_bytes()) == before
    assert sorted(path.suffix for path in run.iterdir() if path.suffix == ".tmp") == []


@pytest.mark.slow
def test_ten_thousand_classes_make_a_small_page_in_little_memory(tmp_path: Path) -> None:
    classes = 10_000
    run = write_run(tmp_path / "run", class_names=["a"], images_per_class=1, mistakes=())
    rows = [(i, f"{i}.png", i, (i * 7) % classes, 0.5, 0.1) for i in range(classes)]
    columns = "index path label predicted probability label_probability"
    write_table(run / "predictions.csv", columns, rows)
    names = [f"kind {i}" for i in range(classes)]
    evaluation = {
        "model": "m",
        "class_names": names,
        "per_class": [{"name": name, "images": 1, "accuracy": 0.0} for name in names],
        "confusion": {
            "classes": classes,
            "counts": [[i, (i * 7) % classes, 1] for i in range(classes)],
        },
    }
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    tracemalloc.start()
    page = write_report(run)
    assert tracemalloc.get_traced_memory()[1] < 150e6
    tracemalloc.stop()
    assert page.stat().st_size < 1e6
    assert "lists all 10,000 classes" in Page(page).words


class TinyGLNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.block = GLMixBlock(8, num_heads=2, slots=(2, 2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean(dim=(2, 3)))


def test_slot_maps_of_a_model_with_slots(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", mistakes=())
    model = TinyGLNet().train()
    page = Page(write_report(run, model=model, image=square, preprocess=to_tensor))
    assert "6 \N{MULTIPLICATION SIGN} 8 positions 4 slots" in page.words
    assert page.pictures() == 6  # the first image of each of three classes, and its map
    assert model.training


def test_no_slot_maps_without_slots_or_predictions(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    plain = nn.Conv2d(3, 8, 3)
    page = Page(write_report(run, model=plain, image=square, preprocess=to_tensor))
    assert "Slot maps" not in page.words
    (run / "predictions.csv").unlink()
    page = Page(write_report(run, model=TinyGLNet(), image=square, preprocess=to_tensor))
    assert "Slot maps" not in page.words


def test_slot_maps_of_a_half_precision_model(tmp_path: Path) -> None:
    model = TinyGLNet().to(torch.bfloat16)
    page = Page(
        write_report(write_run(tmp_path / "run"), model=model, image=square, preprocess=to_tensor)
    )
    assert "Slot maps" in page.words
