"""A resumed run keeps its classes and their numbers; other classes are an error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convattn.runs.weights import read_ckpt, save_weights
from convattn.tasks.classification import load_checkpoint, resume, train
from tests.data.class_folders import write_classes, write_image
from tests.tasks.classification.runs import STILL, silent, tiny, weights, write_colors


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes, and a run on them of one epoch."""
    folder = tmp_path_factory.mktemp("first")
    write_colors(folder, 8)
    train(tiny(folder, name="run", epochs=1, **STILL), console=silent())
    return folder


@pytest.fixture
def run(first: Path, tmp_path: Path) -> Path:
    """A copy of that run; its data is in ``colors``, two folders above."""
    folder = Path(shutil.copytree(first, tmp_path / "copy"))
    config = folder / "runs" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(first), str(folder)))
    return config.parent


def with_classes(run: Path, names: Sequence[str]) -> Path:
    """Let the run's checkpoints number its classes so."""
    best = load_checkpoint(run)
    save_weights(best.model.state_dict(), replace(best.card, class_names=tuple(names)), best.path)
    path = run / "checkpoints" / "last.ckpt"
    content = read_ckpt(path)
    card = {**json.loads(content["convattn"]["card"]), "class_names": names}
    content["convattn"]["card"] = json.dumps(card)
    (run / "data.json").unlink(missing_ok=True)  # as a run of an earlier version
    torch.save(content, path)
    return run


def contents(run: Path) -> Mapping[Path, bytes]:
    """What lies in the run's folder."""
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_classes_keep_the_numbers_of_the_run_that_goes_on(run: Path) -> None:
    before = weights(run)
    with_classes(run, ["red", "blue"])  # by name blue comes first
    source = resume(run, overrides={"epochs": 2}, console=silent()).source
    assert source.class_names == ("red", "blue")
    for images in (source.train, source.val):
        for index in range(len(images)):
            assert Path(images.path(index)).parent.name == source.class_names[images.label(index)]
    assert load_checkpoint(run / "checkpoints" / "last.ckpt").card.class_names == ("red", "blue")
    torch.testing.assert_close(weights(run), before)


def test_classes_that_are_named_like_parts_stay_classes(run: Path) -> None:
    colors = run.parents[1] / "colors"
    for old, new in (("red", "Training"), ("blue", "Testing")):
        (colors / old).rename(colors / new)
    names = ("Testing", "Training")
    with_classes(run, names)
    for name in names:  # so that the folders could be parts, too
        for part in ("cat", "dog"):
            write_image(colors / name / part / "1.png")
    assert resume(run, overrides={"epochs": 2}, console=silent()).source.class_names == names


def test_a_layout_that_has_two_readings_goes_on_as_it_began(run: Path) -> None:
    colors = run.parents[1] / "colors"
    for name in ("red", "blue"):
        for side in ("left", "right"):
            write_classes(colors / name, {side: 3}, first=20)
    with pytest.raises(ValueError, match="can be read in two ways"):
        train(tiny(colors.parent, epochs=1), console=silent())
    source = resume(run, overrides={"epochs": 2}, console=silent()).source
    assert source.class_names == ("blue", "red")


def rename(colors: Path) -> None:
    (colors / "red").rename(colors / "pink")


def add(colors: Path) -> None:
    write_classes(colors, {"pink": 3})


def remove(colors: Path) -> None:
    shutil.rmtree(colors / "red")


def clear(colors: Path) -> None:
    for path in (colors / "red").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "told"), [(rename, "'pink'"), (add, "'pink'"), (remove, "'red'"), (clear, "'red'")]
)
def test_classes_that_changed_are_named_before_anything_is_written(
    run: Path, change: Callable[[Path], None], told: str
) -> None:
    change(run.parents[1] / "colors")
    before = contents(run)
    with pytest.raises(ValueError, match=f"{told}.*start a new run with init={run}"):
        resume(run, overrides={"epochs": 2}, console=silent())
    assert contents(run) == before


def as_timm(run: Path) -> None:
    """Let the run's data be read by timm, as train/ and validation/."""
    colors = run.parents[1] / "colors"
    for part in ("train", "validation"):
        write_classes(run.parents[1] / "parts" / part, {"blue": 4, "red": 4})
    (run / "data.json").unlink()
    config = run / "config.yaml"
    text = config.read_text().replace(f"data: folder:{colors}", "data: 'timm:'")
    config.write_text(text.replace("root: null", f"root: {colors.parent / 'parts'}"))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["blue", "pink"], "only the model has 'pink'; only the data has 'red'"),
        (["blue", "green", "red"], "only the model has 'green'"),
        (["red", "blue"], "number 0 is 'red' in the run and 'blue' in the data"),
    ],
)
def test_other_classes_of_timms_data_are_refused(run: Path, names: list[str], told: str) -> None:
    as_timm(run)
    with_classes(run, names)
    before = contents(run)
    with pytest.raises(ValueError, match=f"{told}.*start a new run with init="):
        resume(run, overrides={"epochs": 2}, console=silent())
    assert contents(run) == before


def test_the_same_classes_of_timms_data_go_on(run: Path) -> None:
    as_timm(run)
    found = resume(run, overrides={"epochs": 2}, console=silent())
    assert found.source.class_names == ("blue", "red")
