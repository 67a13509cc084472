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
from convattn.data import check_range, eval_transform, load_image, open_dataset
from convattn.runs.weights import read_ckpt, save_weights
from convattn.tasks.classification import (
    Checkpoint,
    ModelCard,
    evaluate,
    load_checkpoint,
    predict,
    resume,
    train,
)
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


def test_a_range_in_the_wrong_order_is_refused_in_the_same_words_everywhere(
    tmp_path: Path,
) -> None:
    said = []
    for refuse in (lambda: tiny(tmp_path, value_range=[9, 1]), lambda: check_range([9.0, 1.0])):
        with pytest.raises(ValueError, match="value_range") as error:
            refuse()
        said.append(str(error.value))
    assert said[0] == said[1]


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


def test_the_transform_and_the_model_give_the_same_scores(run: tuple[Path, str]) -> None:
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
    said = capsys.readouterr().err
    assert "changes nothing" not in said
    assert "8 bits, such as " in said
    assert "the model was trained on images of floats or of more bits" in said
    given = ["--value-range", "0", "9"]
    assert main(["predict", str(run[0]), str(tmp_path / "a.png"), *given]) == 0
    assert "value_range 0 to 9 changes nothing" in capsys.readouterr().err


def test_plain_images_for_a_plain_model_are_not_told(earlier: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 9), 90).save(tmp_path / "a.png")
    assert predict(earlier, [tmp_path / "a.png"]).notes == ()


def write_kinds(folder: Path) -> list[Path]:
    """An image of 8 bits, one of 12 bits, and two of floats whose ranges differ."""
    random = np.random.default_rng(3)
    folder.mkdir()
    Image.fromarray(random.integers(0, 256, (9, 9)).astype(np.uint8)).save(folder / "plain.png")
    Image.fromarray(random.integers(0, 4096, (9, 9)).astype(np.uint16)).save(folder / "deep.png")
    write_tiff(folder / "unit.tif", random.uniform(0, 1, (9, 9)).astype(np.float32))
    write_tiff(folder / "wide.tif", random.uniform(-700, 900, (9, 9)).astype(np.float32))
    return [folder / name for name in ("plain.png", "deep.png", "unit.tif", "wide.tif")]


def test_a_model_without_a_range_sees_each_image_alike_alone_and_among_others(
    earlier: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    paths = write_kinds(tmp_path / "mixed")
    together = predict(earlier, paths, top_k=1)
    assert [Path(image.path) for image in together.images] == paths
    assert len(together.notes) == 1
    assert "1 image of integers of more than 8 bits as 0 to 65535" in together.notes[0]
    assert "2 images of floats each by its own values" in together.notes[0]
    assert not any("scaled by its own values" in str(found.message) for found in recwarn)
    for path, among in zip(paths, together.images, strict=True):
        alone = predict(earlier, [path], top_k=1).images[0]
        assert alone.guesses[0].probability == pytest.approx(among.guesses[0].probability, abs=1e-5)


def test_all_images_beyond_those_that_are_looked_at_are_read_alike(
    earlier: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(210):
        Image.new("L", (3, 3), number).save(folder / f"{number:03}.png")
    Image.fromarray(np.full((9, 9), 9_000, np.uint16)).save(folder / "209b.png")
    found = predict(earlier, [folder])
    assert len(found.images) == 211
    assert "1 image of integers" in found.notes[0]


@pytest.mark.parametrize("given", [None, (0, 1023)])
def test_a_range_holds_for_images_of_all_kinds(
    run: tuple[Path, str], tmp_path: Path, given: tuple[float, float] | None
) -> None:
    paths = write_kinds(tmp_path / "mixed")
    loaded = load_checkpoint(run[0])
    scale = given or TWELVE_BITS
    for image in predict(run[0], paths, top_k=1, value_range=given).images:
        pixels = eval_transform(loaded.card.preprocess)(load_image(image.path, scale))
        best = loaded.model(pixels[None]).softmax(-1).max().item()
        assert image.guesses[0].probability == pytest.approx(best, abs=1e-5)


def test_a_card_without_a_range_says_so(
    tmp_path: Path, run: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    old = without_range(load_checkpoint(run[0]))
    assert old.card.value_range is None
    found = evaluate(old, split="all")
    assert any("has no value_range" in note for note in found.notes)
    assert any("0 to 65535 (16 bits) is used" in note for note in found.notes)
    files = [line.path for line in found.predictions]
    assert any("has no value_range" in note for note in predict(old, files).notes)
    save_weights(old.model.state_dict(), old.card, tmp_path / "old.safetensors")
    data = f"folder:{run[0].parent.parent / 'colors'}"
    assert main(["eval", str(tmp_path / "old.safetensors"), "--data", data]) == 0
    said = capsys.readouterr().out
    assert "note      the checkpoint (convattn " in said
    assert "--value-range LOW HIGH" in said
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
    with pytest.raises(ValueError, match="value_range cannot change in a resumed run"):
        resume(run_dir, overrides={"epochs": 3, "value_range": [0, 9]}, console=silent())


@pytest.fixture
def earlier(tmp_path: Path, run: tuple[Path, str]) -> Path:
    """The run, as a version wrote it that kept no range."""
    run_dir = Path(shutil.copytree(run[0], tmp_path / "run"))
    last = run_dir / "checkpoints" / "last.ckpt"
    content = read_ckpt(last)
    card = json.loads(content["convattn"]["card"])
    del card["value_range"]
    content["convattn"]["card"] = json.dumps(card)
    torch.save(content, last)
    old = without_range(load_checkpoint(run_dir))
    save_weights(old.model.state_dict(), old.card, old.path)
    return run_dir


def test_a_run_of_an_earlier_version_goes_on_with_its_scale(earlier: Path) -> None:
    console = silent()
    source = resume(earlier, overrides={"epochs": 2}, console=console).source
    assert source.value_range == (0, 65535)
    as_before = load_image(source.train.path(0), (0, 65535))
    assert np.array_equal(np.asarray(source.train.image(0)), np.asarray(as_before))
    printed = written(console)
    assert "note      the checkpoint (convattn " in printed
    assert "0 to 65535 (16 bits) is used" in printed
    assert load_checkpoint(earlier / "checkpoints" / "last.ckpt").card.value_range == (0, 65535)
    again = resume(earlier, overrides={"epochs": 3}, console=silent())
    assert again.source.value_range == (0, 65535)


def test_the_range_of_a_run_of_an_earlier_version_can_be_set_once(earlier: Path) -> None:
    settings = {"epochs": 2, "value_range": [0, 4095]}
    found = resume(earlier, overrides=settings, console=silent())
    assert found.source.value_range == TWELVE_BITS
    with pytest.raises(ValueError, match=r"cannot change in a resumed run \(it is .*4095"):
        resume(earlier, overrides={"epochs": 3, "value_range": [0, 9]}, console=silent())


def test_an_earlier_checkpoint_is_evaluated_with_the_scale_of_its_training(
    earlier: Path, tmp_path: Path
) -> None:
    found = evaluate(earlier, split="all")
    old_scale = evaluate(earlier, split="all", value_range=(0, 65535))
    assert found.loss == pytest.approx(old_scale.loss, abs=1e-6)
    alike = {line.path: line.probability for line in old_scale.predictions}
    for image in predict(earlier, alike, top_k=1).images:
        assert image.guesses[0].probability == pytest.approx(alike[image.path], abs=1e-5)


def test_floats_of_an_earlier_checkpoint_are_decided_from_the_set(
    earlier: Path, tmp_path: Path
) -> None:
    for name in ("bright", "dark"):
        for number in range(3):
            pixels = np.linspace(0, 200 + number, 81, dtype=np.float32).reshape(9, 9)
            write_tiff(tmp_path / "floats" / name / f"{number}.tif", pixels)
    found = evaluate(earlier, f"folder:{tmp_path / 'floats'}")
    assert any("taken as 0 to 255" in note for note in found.notes)
    assert any("has no value_range" in note for note in found.notes)


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
