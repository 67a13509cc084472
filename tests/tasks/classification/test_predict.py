from __future__ import annotations

from pathlib import Path

import pytest

from convattn.tasks.classification import TrainResult, evaluate, load_checkpoint, predict
from tests.data.class_folders import write_broken, write_classes, write_image


def test_images_and_folders_are_classified_in_order(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    write_classes(tmp_path / "many", {"red": 2, "blue": 11})
    single = write_image(tmp_path / "Übung.PNG")
    found = predict(finished[1].run_dir, [single, tmp_path / "many"], top_k=2, batch_size=4)
    names = [Path(image.path).name for image in found.images]
    assert names[:4] == ["Übung.PNG", "0.png", "1.png", "2.png"]
    assert len(names) == 14
    for image in found.images:
        assert {guess.name for guess in image.guesses} == {"blue", "red"}
        assert sum(guess.probability for guess in image.guesses) == pytest.approx(1, abs=1e-5)
        assert image.guesses[0].probability >= image.guesses[1].probability


def test_predictions_are_those_of_the_evaluation(finished: tuple[Path, TrainResult]) -> None:
    loaded = load_checkpoint(finished[1].run_dir)
    expected = {p.path: p for p in evaluate(loaded).predictions}
    for image in predict(loaded, expected, top_k=1).images:
        best = image.guesses[0]
        assert best.name == loaded.card.class_names[expected[image.path].predicted]
        assert best.probability == pytest.approx(expected[image.path].probability, abs=1e-5)


def test_top_k_is_at_most_the_number_of_classes(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    path = write_image(tmp_path / "a.png")
    assert len(predict(finished[1].run_dir, [path], top_k=9).images[0].guesses) == 2
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        predict(finished[1].run_dir, [path], top_k=0)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got -5"):
        predict(finished[1].run_dir, [path], batch_size=-5)


def test_a_broken_image_is_reported_beside_the_others(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    paths = [write_image(tmp_path / "a.png"), write_broken(tmp_path / "b.png")]
    found = predict(finished[1].run_dir, paths)
    assert [image.path for image in found.images] == [str(paths[0])]
    assert [file.path for file in found.broken] == [str(paths[1])]


def test_only_broken_images_are_an_error(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    with pytest.raises(ValueError, match=r"none of the 1 images can be read.*b\.png: not an image"):
        predict(finished[1].run_dir, [write_broken(tmp_path / "b.png")])


def test_a_missing_path_and_an_empty_folder_are_errors(
    tmp_path: Path, finished: tuple[Path, TrainResult]
) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image or folder .*gone"):
        predict(finished[1].run_dir, [tmp_path / "gone"])
    with pytest.raises(ValueError, match=f"no images in the folder {tmp_path}"):
        predict(finished[1].run_dir, [tmp_path])
