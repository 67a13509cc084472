"""A run keeps its data: resume and evaluation compare what is there with what the run recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from convattn.data import DataSource, ImageSet, open_dataset
from convattn.tasks.classification import evaluate, load_checkpoint, load_config, resume, train
from convattn.training.trained_data import held_out_part
from tests.data.class_folders import write_broken, write_classes
from tests.tasks.classification.runs import silent, timeless, tiny, weights, write_colors, written

pytestmark = pytest.mark.slow  # trainings of seconds each


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes, and a run on them of one epoch."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("first")
    write_colors(folder)
    train(tiny(folder, name="run", epochs=1), console=silent())
    return folder


@pytest.fixture
def run(first: Path, tmp_path: Path) -> Path:
    """A copy of that run; its data is in ``colors``, two folders above."""
    folder = Path(shutil.copytree(first, tmp_path / "copy"))
    for file in ("config.yaml", "data.json"):
        path = folder / "runs" / "run" / file
        path.write_text(path.read_text().replace(str(first), str(folder)))
    return folder / "runs" / "run"


def names(source: DataSource, images: ImageSet) -> list[str]:
    return [source.relative_name(images, index) for index in range(len(images))]


def held_out(run: Path) -> list[str]:
    return list(json.loads((run / "data.json").read_text())["held_out"])


def contents(run: Path) -> Mapping[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("folders", "part"), [((), "25% of the images, split_seed=3"), (("train", "valid"), "valid")]
)
def test_the_held_out_part_is_named(tmp_path: Path, folders: tuple[str, ...], part: str) -> None:
    for folder in folders or (".",):
        write_classes(tmp_path / folder, {"red": 4, "blue": 4})
    config = tiny(tmp_path, data=f"folder:{tmp_path}", split_seed=3)
    source = open_dataset(config.data, val_fraction=0.25, split_seed=3)
    assert held_out_part(source, config) == part


def test_the_held_out_part_of_the_digits_and_of_timm_is_named(tmp_path: Path) -> None:
    config = tiny(tmp_path, val_split="test")
    digits = open_dataset("digits")
    assert held_out_part(digits, config) == "20% of the images"
    timm = replace(digits, name="timm:torch/cifar10", split_here=False)
    assert held_out_part(timm, config) == "test"


def test_added_images_change_nothing_of_a_run_that_goes_on(run: Path, tmp_path: Path) -> None:
    straight = resume(
        shutil.copytree(run, tmp_path / "straight"), overrides={"epochs": 3}, console=silent()
    )
    write_classes(run.parents[1] / "colors", {"red": 8, "blue": 8}, first=100)
    console = silent()
    longer = resume(run, overrides={"epochs": 3}, console=console)
    assert names(longer.source, longer.source.val) == held_out(run)
    assert timeless(run) == timeless(straight.run_dir)
    for key, value in weights(straight.run_dir).items():
        torch.testing.assert_close(weights(run)[key], value, rtol=0, atol=0)
    assert written(console).count("16 images were added") == 1
    assert len(held_out(run)) == 8


def test_an_evaluation_takes_the_recorded_images(run: Path) -> None:
    before = held_out(run)
    colors = run.parents[1] / "colors"
    write_classes(colors, {"red": 8, "blue": 8}, first=100)
    found = evaluate(run)
    assert [Path(p.path).relative_to(colors).as_posix() for p in found.predictions] == before
    assert any("16 images were added" in note for note in found.notes)
    assert evaluate(run, split="train").images == 24


def test_an_evaluation_finds_the_recorded_images_where_the_folder_is_now(run: Path) -> None:
    colors = run.parents[1] / "colors"
    before = evaluate(run)
    moved = colors.rename(colors.with_name("moved"))
    write_classes(moved, {"red": 8}, first=100)
    found = evaluate(run, f"folder:{moved}")
    assert (found.split, found.images, found.loss) == ("val", 8, pytest.approx(before.loss))


def test_a_folder_with_the_same_names_is_another_data_set(run: Path, tmp_path: Path) -> None:
    write_classes(tmp_path / "other", {"red": 16, "blue": 17})
    for path in (tmp_path / "other").rglob("*.png"):
        with path.open("ab") as file:
            file.write(b"0")
    found = evaluate(run, f"folder:{tmp_path / 'other'}")
    assert (found.split, found.images) == ("all", 33)


def test_a_run_goes_on_where_its_folder_is_now(run: Path) -> None:
    before = held_out(run)
    colors = run.parents[1] / "colors"
    moved = f"folder:{colors.rename(colors.with_name('moved'))}"
    longer = resume(run, overrides={"epochs": 2, "data": moved}, console=silent())
    assert names(longer.source, longer.source.val) == before
    assert load_config(run / "config.yaml").data == moved
    assert json.loads((run / "data.json").read_text())["name"] == moved
    again = load_checkpoint(run / "checkpoints" / "last.safetensors")
    assert again.card.data == moved
    assert evaluate(run).images == 8  # best.safetensors may name the old folder


def test_a_run_does_not_go_on_with_other_data(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    other = write_classes(tmp_path / "other", {"red": 16, "blue": 16})
    gone = held_out(run)[2]
    (other / gone).unlink()
    with pytest.raises(ValueError, match=f"is not the data of the run.*lacks 1 of 8.*'{gone}'"):
        resume(run, overrides={"epochs": 2, "data": f"folder:{other}"}, console=silent())
    assert contents(run) == before


def test_a_run_whose_held_out_folder_vanished_is_refused(tmp_path: Path) -> None:
    for part, count in (("train", 8), ("val", 4)):
        write_classes(tmp_path / "colors" / part, {"red": count, "blue": count})
    run = train(tiny(tmp_path, epochs=1), console=silent()).run_dir
    shutil.rmtree(tmp_path / "colors" / "val")
    before = contents(run)
    with pytest.raises(ValueError, match="no longer has the held-out part of the run"):
        resume(run, overrides={"epochs": 2}, console=silent())
    with pytest.raises(ValueError, match="no longer has the held-out part of the run"):
        evaluate(run)
    assert contents(run) == before


def test_a_renamed_class_is_named_before_anything_is_written(run: Path) -> None:
    colors = run.parents[1] / "colors"
    (colors / "blue").rename(colors / "sky")  # the order of the names stays
    before = contents(run)
    with pytest.raises(ValueError, match=r"'sky'.*'blue', 'red'.*start a new run with init="):
        resume(run, overrides={"epochs": 2}, console=silent())
    with pytest.raises(ValueError, match="'sky'"):
        evaluate(run)
    assert contents(run) == before


def test_a_run_without_a_checkpoint_keeps_its_classes_too(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    colors = run.parents[1] / "colors"
    (colors / "blue").rename(colors / "sky")
    with pytest.raises(ValueError, match="'sky'"):
        resume(run, console=silent())
    (colors / "sky").rename(colors / "blue")
    write_classes(colors, {"red": 8}, first=100)
    again = resume(run, console=silent())
    assert names(again.source, again.source.val) == held_out(run)


def test_images_that_are_gone_are_named(run: Path) -> None:
    gone = held_out(run)[0]
    (run.parents[1] / "colors" / gone).unlink()
    console = silent()
    resume(run, overrides={"epochs": 2}, console=console)
    assert written(console).count(f"'{gone}'") == 1


def test_images_that_training_left_out_are_no_error_of_its_evaluation(tmp_path: Path) -> None:
    colors = write_colors(tmp_path)
    cut = colors / "red" / "cut.png"
    cut.write_bytes((colors / "red" / "0.png").read_bytes()[:200])  # its header is whole
    write_broken(colors / "blue" / "bad.png")
    run = train(tiny(tmp_path, epochs=1, max_broken=0.1), console=silent()).run_dir
    assert evaluate(run).images == 8
    longer = resume(run, overrides={"epochs": 2}, console=silent())
    assert len(longer.source.train) == 24
    assert len(longer.source.broken) == 2
