from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from convattn.data import DataSource, Preprocess, open_dataset
from convattn.data.source import ArrayImages
from convattn.runs.card import ModelCard
from convattn.runs.confusion import Confusion
from convattn.tasks.classification import Checkpoint, TrainResult, evaluate, load_checkpoint
from convattn.tasks.classification.evaluation import ClassResult, Evaluation, summarise
from convattn.training.evaluate import _speed
from convattn.training.evaluation import Found
from tests.data.class_folders import write_broken, write_classes


class Constant(nn.Module):
    """Always gives the same scores."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores.expand(len(x), -1)


def constant(run_dir: Path, scores: list[float]) -> Checkpoint:
    loaded = load_checkpoint(run_dir)
    return Checkpoint(Constant(scores), loaded.card, loaded.path)


def test_numbers_of_a_model_that_always_says_blue(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    write_classes(tmp_path, {"blue": 3, "red": 1})
    found = evaluate(constant(finished[1].run_dir, [3.0, 0.0]), f"folder:{tmp_path}")
    assert (found.images, found.num_classes, found.top1, found.top5) == (4, 2, 0.75, 1.0)
    assert found.confusion == [[3, 0], [1, 0]]
    assert [(c.name, c.images, c.accuracy) for c in found.per_class] == [
        ("blue", 3, 1.0),
        ("red", 1, 0.0),
    ]
    blue = torch.tensor(3.0).sigmoid().item()
    expected = -(3 * torch.tensor(blue).log() + torch.tensor(1 - blue).log()).item() / 4
    assert found.loss == pytest.approx(expected, abs=1e-5)
    assert [p.probability for p in found.predictions] == [pytest.approx(blue)] * 4
    assert [p.label_probability for p in found.predictions if p.label == 1] == [
        pytest.approx(1 - blue, abs=1e-6)
    ]


def test_the_files_hold_the_same(tmp_path: Path, finished: tuple[Path, TrainResult]) -> None:
    found = evaluate(finished[1].run_dir)
    found.write(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(found.to_dict()))
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "index",
        "path",
        "label",
        "predicted",
        "probability",
        "label_probability",
    ]
    assert [int(row["index"]) for row in rows] == list(range(found.images))
    hits = sum(row["label"] == row["predicted"] for row in rows)
    assert hits / len(rows) == pytest.approx(found.top1)
    assert all(Path(row["path"]).is_file() for row in rows)


def test_by_default_it_is_the_trainings_own_held_out_part(
    finished: tuple[Path, TrainResult],
) -> None:
    result = finished[1]
    again = evaluate(result.run_dir)
    assert result.evaluation is not None
    assert (again.split, again.images) == ("val", 8)  # val_fraction=0.25 comes with the checkpoint
    assert again.to_dict() | {"images_per_second": 0} == result.evaluation.to_dict() | {
        "images_per_second": 0
    }


def test_best_and_last_and_both_forms_load(finished: tuple[Path, TrainResult]) -> None:
    folder = finished[1].run_dir / "checkpoints"
    for name in ("best", "last"):
        forms = [evaluate(folder / f"{name}.{end}") for end in ("ckpt", "safetensors")]
        assert forms[0].loss == pytest.approx(forms[1].loss, abs=1e-6)


def test_the_batch_size_changes_nothing(finished: tuple[Path, TrainResult]) -> None:
    losses = [evaluate(finished[1].run_dir, batch_size=size).loss for size in (1, 3, 64)]
    assert losses == [pytest.approx(losses[0], abs=1e-5)] * 3


def test_another_folder_is_evaluated_as_a_whole(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    write_classes(tmp_path, {"red": 5, "blue": 6})
    found = evaluate(finished[1].run_dir, f"folder:{tmp_path}")
    assert (found.split, found.images) == ("all", 11)
    assert Counter(p.label for p in found.predictions) == {0: 6, 1: 5}


def test_the_split_can_be_chosen(finished: tuple[Path, TrainResult]) -> None:
    run_dir = finished[1].run_dir
    sizes = [evaluate(run_dir, split=split).images for split in ("train", "val", "all")]
    assert sizes == [24, 8, 32]
    with pytest.raises(ValueError, match=r"unknown split 'vall'; did you mean 'val'\?"):
        evaluate(run_dir, split="vall")  # type: ignore[arg-type]


def test_a_folder_with_some_of_the_classes_is_fine(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    write_classes(tmp_path, {"red": 5})
    found = evaluate(finished[1].run_dir, f"folder:{tmp_path}")
    assert found.per_class[0].accuracy is None
    assert found.per_class[1].images == 5


def test_an_unknown_class_is_an_error(tmp_path: Path, finished: tuple[Path, TrainResult]) -> None:
    write_classes(tmp_path, {"red": 2, "green": 2})
    with pytest.raises(ValueError, match="not in the model's classes: 'green'"):
        evaluate(finished[1].run_dir, f"folder:{tmp_path}")


def test_another_number_of_classes_is_an_error(finished: tuple[Path, TrainResult]) -> None:
    message = (
        r"has 2 classes \(.blue., .red.\), but digits has 10 "
        r"\(.0., .1., .2., .3., .4. and 5 more\)"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(finished[1].run_dir, "digits")


def test_other_names_of_classes_are_an_error(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    write_classes(tmp_path, {"rot": 2, "blau": 2})
    source = open_dataset(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="class 0 is 'blue' in the checkpoint and 'blau'"):
        evaluate(finished[1].run_dir, source)


def test_broken_images_are_left_out_and_listed(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    write_classes(tmp_path, {"red": 5, "blue": 5})
    bad = write_broken(tmp_path / "red" / "bad.png")
    with pytest.raises(ValueError, match="1 of 11 images"):
        evaluate(finished[1].run_dir, f"folder:{tmp_path}")
    found = evaluate(finished[1].run_dir, f"folder:{tmp_path}", max_broken=0.1)
    assert (found.images, found.broken) == (10, [str(bad)])


def test_an_image_that_broke_after_it_was_checked_is_not_counted(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    source = open_dataset(f"folder:{write_classes(tmp_path, {'red': 5, 'blue': 5})}")
    bad = source.val.path(0)
    write_broken(Path(bad))
    with pytest.raises(ValueError, match="1 of 2 images in folder:"):
        evaluate(finished[1].run_dir, source, split="val")
    found = evaluate(finished[1].run_dir, source, split="val", max_broken=0.5)
    assert (found.images, [p.index for p in found.predictions]) == (1, [1])
    assert found.broken == [bad]


def test_speed_leaves_out_the_first_batch_where_there_are_more():
    assert _speed([64, 64, 32], [0.0, 10.0, 11.0, 12.0]) == 48
    assert _speed([64], [0.0, 2.0]) == 32


@pytest.mark.parametrize(("classes", "title"), [(40, "class"), (41, "worst 40 classes")])
def test_the_table_has_the_worst_classes_where_there_are_many(classes: int, title: str) -> None:
    names = [f"c{number}" for number in range(classes)]
    found = Evaluation(
        model="m", data="d", split="val", num_classes=classes + 1, class_names=[*names, "empty"],
        images=classes, images_per_second=1.0, parameters=1, broken=[], top1=0.5, top5=0.5,
        loss=1.0, confusion=Confusion(classes + 1), predictions=[],
        per_class=[
            *(ClassResult(name, 7, 1 - number / 100) for number, name in enumerate(names)),
            ClassResult("empty", 0, None),
        ],
    )  # fmt: skip
    heading, *rows = found.table().splitlines()
    assert heading == f"{title:{max(len(title), 5)}}  images  accuracy"
    assert len(rows) == 40
    best, worst = classes - 40, classes - 1  # the only class that is left out is the best one
    expected = [[f"c{number}", "7", f"{1 - number / 100:.1%}"] for number in (best, worst)]
    assert sorted(row.split() for row in (rows[0], rows[-1])) == sorted(expected)


def test_the_confusion_of_many_classes_is_written_compactly(tmp_path: Path) -> None:
    classes = 3000
    labels = torch.arange(classes)
    names = tuple(map(str, range(classes)))
    pixels = np.zeros((classes, 1, 1), np.uint8)
    images = ArrayImages(pixels, labels.tolist())
    source = DataSource("many", names, images, images)
    card = ModelCard("m", {}, names, Preprocess((1, 1, 1), (0.5,), (0.5,)), epoch=3)
    found = Found(
        outputs=[torch.eye(classes).roll(1, 0)], targets=[labels], numbers=labels.tolist(),
        broken=[], split="val", images_per_second=1.0, parameters=1, notes=[],
    )  # fmt: skip
    evaluation = summarise(card, source, images, found)
    evaluation.write(tmp_path)
    path = tmp_path / "evaluation.json"
    assert path.stat().st_size < 400_000
    values = json.loads(path.read_text())
    assert values["epoch"] == 3
    assert Confusion.from_json(values["confusion"]) == evaluation.confusion
    assert evaluation.confusion.row(7) == {6: 1}
