"""The range of values of float and deep images: decided once, kept with the run, and told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from convattn.cli import main
from convattn.data import eval_transform, load_image, open_dataset
from convattn.tasks.classification import (
    Checkpoint,
    ModelCard,
    evaluate,
    load_checkpoint,
    predict,
    resume,
    train,
)
from convattn.tasks.classification.checkpoint import read_ckpt, save_weights
from tests.data.deep_files import write_tiff
from tests.tasks.classification.runs import silent, tiny, written

TWELVE_BITS = (0.0, 4095.0)


def write_deep(root: Path, high: int = 4095, count: int = 8) -> Path:
    """Write dark and bright images of 16 bits whose values reach ``high``."""
    random = np.random.default_rng(0)
    for name, top in (("bright", high), ("dark", high // 4)):
        for number in range(count):
            (root / name).mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, top + 1, (10, 12)).astype(np.uint16)
            pixels[0, 0] = top
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run on 12-bit images, and what it printed."""
    folder = tmp_path_factory.mktemp("deep")
    write_deep(folder / "colors")
    console = silent()
    return train(tiny(folder, name="run", epochs=1), console=console).run_dir, written(console)


def without_range(checkpoint: Checkpoint) -> Checkpoint:
    """The same as an earlier version wrote it."""
    values = json.loads(checkpoint.card.to_json())
    del values["value_range"]
    return Checkpoint(checkpoint.model, ModelCard.from_json(json.dumps(values)), checkpoint.path)


def test_the_range_is_decided_told_and_kept(run: tuple[Path, str]) -> None:
    run_dir, printed = run
    assert "note      the images are stored with more than 8 bits: values 0 to 4095 are" in printed
    for name in ("best.safetensors", "last.ckpt"):
        assert load_checkpoint(run_dir / "checkpoints" / name).card.value_range == TWELVE_BITS


def test_the_users_range_wins(tmp_path: Path) -> None:
    write_deep(tmp_path / "colors")
    result = train(tiny(tmp_path, epochs=1, value_range=[0, 65535]), console=silent())
    assert result.source.value_range == (0, 65535)
    assert load_checkpoint(result.run_dir).card.value_range == (0, 65535)


@pytest.mark.parametrize("wrong", [[5, 5], [9, 1], [0], [0, float("inf")], "dark"])
def test_a_range_that_is_none_is_refused(tmp_path: Path, wrong: object) -> None:
    with pytest.raises((ValueError, ValidationError), match="value_range"):
        tiny(tmp_path, value_range=wrong)


def test_new_images_are_evaluated_with_the_trainings_range(
    tmp_path: Path, run: tuple[Path, str]
) -> None:
    dark = write_deep(tmp_path, high=1023)  # alone they would be taken for 10 bits
    own = open_dataset(f"folder:{dark}")
    assert own.value_range == (0, 1023)
    right = open_dataset(f"folder:{dark}", value_range=TWELVE_BITS)
    expected = evaluate(run[0], right, split="all")
    assert evaluate(run[0], f"folder:{dark}").loss == pytest.approx(expected.loss, abs=1e-6)
    found = evaluate(run[0], own, split="all")
    assert found.loss == pytest.approx(expected.loss, abs=1e-6)
    assert found.notes[-1] == (
        "value_range 0 to 4095 (12 bits) is used in place of 0 to 1023 (10 bits)"
    )
    other = evaluate(run[0], f"folder:{dark}", value_range=(0, 1023))
    assert other.loss != pytest.approx(expected.loss, abs=1e-4)


def test_predictions_are_those_of_the_evaluation(run: tuple[Path, str]) -> None:
    loaded = load_checkpoint(run[0])
    expected = {p.path: p.probability for p in evaluate(loaded, split="all").predictions}
    found = predict(loaded, expected, top_k=1)
    assert found.notes == ()
    for image in found.images:  # alone or together
        probability = image.guesses[0].probability
        assert probability == pytest.approx(expected[image.path], abs=1e-5)
        alone = predict(loaded, [image.path], top_k=1).images[0].guesses[0]
        assert alone.probability == pytest.approx(probability, abs=1e-5)


def test_the_lines_of_the_readme_give_the_same_scores(run: tuple[Path, str]) -> None:
    trained = load_checkpoint(run[0])
    line = evaluate(trained, split="all").predictions[0]
    image = eval_transform(trained.card.preprocess)(load_image(line.path, trained.card.value_range))
    scores = trained.model(image[None]).softmax(-1)
    assert scores.max().item() == pytest.approx(line.probability, abs=1e-5)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.full((9, 9), 60_000, np.uint16), "100% of their values become white"),
        (np.linspace(0, 1, 81, dtype=np.float32).reshape(9, 9), "fill only 0.02% of it"),
    ],
)
def test_an_image_far_from_the_trainings_range_is_told(
    tmp_path: Path,
    run: tuple[Path, str],
    capsys: pytest.CaptureFixture[str],
    pixels: np.ndarray,
    said: str,
) -> None:
    path = write_tiff(tmp_path / "a.tif", pixels)
    assert main(["predict", str(run[0]), str(path)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert len(err.splitlines()) == 1
    assert err.startswith("note: the images are stored ")
    assert "value_range 0 to 4095 (12 bits) becomes 0 to 255" in err
    assert said in err
    fitting = [str(pixels.min()), str(float(pixels.max()) + 1)]
    assert main(["predict", str(run[0]), str(path), "--value-range", *fitting]) == 0


def test_plain_images_for_a_deep_model_are_told(
    tmp_path: Path, run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (9, 9), 90).save(tmp_path / "a.png")
    assert main(["predict", str(run[0]), str(tmp_path / "a.png")]) == 0
    assert "changes nothing: all images have 8 bits" in capsys.readouterr().err


def test_a_card_without_a_range_takes_the_images_own_and_says_so(
    tmp_path: Path, run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    old = without_range(load_checkpoint(run[0]))
    assert old.card.value_range is None
    found = evaluate(old, split="all")
    assert any("keeps no value_range" in note for note in found.notes)
    assert any("taken as 0 to 4095 (12 bits)" in note for note in found.notes)
    files = [line.path for line in found.predictions]
    assert any("keeps no value_range" in note for note in predict(old, files).notes)
    save_weights(old.model, old.card, tmp_path / "old.safetensors")
    data = f"folder:{run[0].parent.parent / 'colors'}"
    assert main(["eval", str(tmp_path / "old.safetensors"), "--data", data]) == 0
    assert "note      the checkpoint (convattn " in capsys.readouterr().out
    words = ["--data", data, "--value-range", "0", "65535"]
    assert main(["eval", str(tmp_path / "old.safetensors"), *words]) == 0
    assert "value_range 0 to 65535 (16 bits) becomes 0 to 255" in capsys.readouterr().out


def test_a_run_goes_on_with_its_range_whatever_the_images_are_now(tmp_path: Path) -> None:
    write_deep(tmp_path / "colors")
    run_dir = train(tiny(tmp_path, epochs=1), console=silent()).run_dir
    other = np.linspace(0, 60_000, 120).reshape(10, 12).astype(np.uint16)
    Image.fromarray(other).save(tmp_path / "colors" / "bright" / "0.png")
    assert open_dataset(f"folder:{tmp_path / 'colors'}").value_range == (0, 65535)
    again = resume(run_dir, overrides={"epochs": 2}, console=silent())
    assert again.source.value_range == TWELVE_BITS
    assert load_checkpoint(run_dir / "checkpoints" / "last.ckpt").card.value_range == TWELVE_BITS
    with pytest.raises(ValueError, match="value_range cannot change in a run that goes on"):
        resume(run_dir, overrides={"epochs": 3, "value_range": [0, 9]}, console=silent())


def test_a_run_of_an_earlier_version_goes_on_with_a_word_about_it(
    tmp_path: Path, run: tuple[Path, str]
) -> None:
    run_dir = Path(shutil.copytree(run[0], tmp_path / "run"))
    last = run_dir / "checkpoints" / "last.ckpt"
    content = read_ckpt(last)
    card = json.loads(content["convattn"]["card"])
    del card["value_range"]
    content["convattn"]["card"] = json.dumps(card)
    torch.save(content, last)
    console = silent()
    resume(run_dir, overrides={"epochs": 2}, console=console)
    assert "note      the checkpoint (convattn " in written(console)


def test_long_images_are_told_and_how_they_are_cut_can_be_set(tmp_path: Path) -> None:
    for name, color in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        for number in range(4):
            (tmp_path / "colors" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (80, 20), color).save(tmp_path / "colors" / name / f"{number}.png")
    console = silent()
    train(tiny(tmp_path, epochs=1, batch_size=4, crop_pct=1.0), console=console)
    assert "the middle 25% of a typical one (80 x 20 pixels)" in written(console)
    console = silent()
    config = tiny(tmp_path, epochs=1, batch_size=4, crop_mode="squash")
    run_dir = train(config, console=console).run_dir
    assert "note" not in written(console)
    assert load_checkpoint(run_dir).card.preprocess.crop_mode == "squash"
