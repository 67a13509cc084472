from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convattn import Predictor
from convattn.data import open_dataset
from convattn.runs.predictions import ClassPrediction
from convattn.runs.weights import save_weights
from convattn.tasks.classification import Checkpoint, load_checkpoint
from convattn.tasks.classification.build import build_model
from tests.data.class_folders import write_broken, write_classes, write_image
from tests.data.deep_files import write_png, write_tiff
from tests.tasks.classification.runs import tiny, write_colors

RANDOM = np.random.default_rng(0)
BYTES = RANDOM.integers(0, 256, (10, 12, 4)).astype(np.uint8)
DEEP = RANDOM.integers(0, 65536, (10, 12, 4)).astype(np.uint16)
FLOATS = RANDOM.uniform(0, 1, (10, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that was not trained, of a model for two classes."""
    folder = tmp_path_factory.mktemp("weights")
    write_colors(folder, 2)
    config = tiny(folder)
    model, card, _ = build_model(config, open_dataset(config.data))
    torch.manual_seed(0)
    for weight in model.parameters():  # a new head gives every image the same scores
        torch.nn.init.normal_(weight, std=0.3)
    save_weights(model.state_dict(), card, folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


@pytest.fixture(scope="module")
def predictor(weights: Path) -> Predictor:
    return Predictor.load(weights, device="cpu")


@pytest.fixture(scope="module")
def deep_predictor(weights: Path) -> Predictor:
    """The same model as if it had been trained on images of 12 bits."""
    loaded = load_checkpoint(weights)
    card = replace(loaded.card, value_range=(0.0, 4095.0))
    return Predictor(replace(loaded, card=card), device="cpu")


def guesses(found: list[ClassPrediction]) -> list[tuple[tuple[str, float], ...]]:
    return [tuple((guess.name, guess.probability) for guess in p.guesses) for p in found]


def scores(found: list[ClassPrediction]) -> list[float]:
    return [{g.name: g.probability for g in p.guesses}["red"] for p in found]


def test_three_lines_give_a_prediction(weights: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(str(weights))
    prediction = predictor(write_image(tmp_path / "photo.png"), top_k=1)[0]
    assert prediction.label in predictor.class_names == ("blue", "red")
    assert 0 <= prediction.probability <= 1
    assert len(prediction.guesses) == 1
    assert prediction.size == (12, 10)
    assert prediction.path == str(tmp_path / "photo.png")
    assert predictor.card.model == "test_vit"
    assert predictor.preprocess.input_size == (3, 32, 32)
    assert not predictor.model.training
    assert repr(predictor).startswith("Predictor(classification, test_vit, 2 classes, ")


def test_every_kind_of_8_bit_image_gives_the_prediction_of_its_file(
    predictor: Predictor, tmp_path: Path
) -> None:
    color = Image.fromarray(BYTES[..., :3])
    color.save(tmp_path / "color.png")
    tensor = torch.from_numpy(BYTES[..., :3].copy()).movedim(-1, 0)
    kinds: dict[str, Any] = {
        "path": tmp_path / "color.png",
        "opened": Image.open(tmp_path / "color.png"),
        "pil": color,
        "array": BYTES[..., :3],
        "not contiguous": np.asfortranarray(BYTES)[..., :3],
        "batch of arrays": BYTES[None, ..., :3],
        "tensor": tensor,
        "batch": tensor[None],
        "float32": tensor / 255,
        "float64": tensor.double() / 255,
        "float16": tensor.half() / 255,
        "gradient": (tensor / 255).requires_grad_(),
    }
    expected = guesses(predictor(str(tmp_path / "color.png")))
    assert {kind: guesses(predictor(image)) == expected for kind, image in kinds.items()} == (
        dict.fromkeys(kinds, True)
    )
    together = scores(predictor(list(kinds.values())))
    assert together == pytest.approx([scores(predictor(kinds["path"]))[0]] * len(kinds), abs=1e-6)


def test_grey_and_transparent_images_give_the_prediction_of_their_files(
    predictor: Predictor, tmp_path: Path
) -> None:
    grey, mask = BYTES[..., 0], BYTES[..., 0] > 90
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(BYTES).save(tmp_path / "alpha.png")
    kinds: dict[str, list[Any]] = {
        "grey": [grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None] / 255],
        "mask": [mask, torch.from_numpy(mask)],
        "alpha": [BYTES, torch.from_numpy(BYTES).movedim(-1, 0), Image.fromarray(BYTES)],
    }
    for name, images in kinds.items():
        expected = guesses(predictor(tmp_path / f"{name}.png"))
        for image in images:
            assert guesses(predictor(image)) == expected, name


@pytest.mark.parametrize("value_range", [None, (0, 1000)])
@pytest.mark.filterwarnings("ignore:the images are stored", "ignore:read 1 image of")
def test_floats_and_deep_images_give_the_predictions_of_their_files(
    predictor: Predictor,
    deep_predictor: Predictor,
    tmp_path: Path,
    value_range: tuple[float, float] | None,
) -> None:
    files: dict[str, tuple[Path, Any]] = {
        "grey": (write_png(tmp_path / "grey.png", DEEP[..., :1]), DEEP[..., 0]),
        "color": (write_png(tmp_path / "color.png", DEEP[..., :3]), DEEP[..., :3]),
        "alpha": (write_png(tmp_path / "alpha.png", DEEP), DEEP),
        "float": (write_tiff(tmp_path / "float.tif", FLOATS), FLOATS),
        "integer": (write_tiff(tmp_path / "i.tif", DEEP[..., 0].astype(np.uint32)), None),
    }
    for used in (predictor, deep_predictor):
        found = set()
        for name, (path, array) in files.items():
            expected = guesses(used(path, value_range=value_range))
            found.add(str(expected))
            image = Image.open(path)
            for _ in range(2):  # the given image is left as it is
                assert guesses(used(image, value_range=value_range)) == expected, name
            if array is not None:
                assert guesses(used(array, value_range=value_range)) == expected, name
                other = array.astype(array.dtype.newbyteorder(">"))
                assert guesses(used(other, value_range=value_range)) == expected, name
        assert len(found) > 2


def test_the_order_is_that_of_the_images(predictor: Predictor, tmp_path: Path) -> None:
    write_classes(tmp_path / "many", {"red": 3, "blue": 2})
    alone = write_image(tmp_path / "alone.png")
    found = predictor([BYTES[..., :3], tmp_path / "many", torch.zeros(2, 3, 4, 4), alone])
    assert [p.path.removeprefix(f"{tmp_path}/") for p in found] == [
        "image 0",
        *(f"many/blue/{i}.png" for i in range(2)),
        *(f"many/red/{i}.png" for i in range(3)),
        "image 6",
        "image 7",
        "alone.png",
    ]
    assert [p.size for p in found] == [(12, 10)] * 6 + [(4, 4)] * 2 + [(12, 10)]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_result_does_not_depend_on_the_batch(predictor: Predictor, batch_size: int) -> None:
    images = [RANDOM.integers(0, 256, (9, 9, 3)).astype(np.uint8) for _ in range(7)]
    expected = [scores(predictor(image))[0] for image in images]
    assert len(set(expected)) == 7
    assert scores(predictor(images, batch_size=batch_size)) == pytest.approx(expected, abs=1e-6)


def test_a_generator_is_taken_batch_by_batch(predictor: Predictor, tmp_path: Path) -> None:
    taken = 0

    def images() -> Iterator[Any]:
        nonlocal taken
        for image in [BYTES[..., :3], write_image(tmp_path / "a.png"), *BYTES[None].repeat(6, 0)]:
            taken += 1
            yield image

    found = predictor.stream(images(), batch_size=3)
    assert (found.total, taken) == (None, 0)
    first = next(found)
    assert taken == 3
    second = next(found)
    assert len(list(found)) == 6
    assert second.draw().size == (12, 10)
    with pytest.raises(ValueError, match="image 0 is not stored, because it is from a generator"):
        first.draw()
    assert first.draw(Image.fromarray(BYTES)).size == (12, 10)


@pytest.mark.filterwarnings("ignore:read 1 image of")
def test_images_in_a_list_can_be_drawn(predictor: Predictor) -> None:
    for prediction in predictor([BYTES, DEEP, torch.ones(3, 10, 12), Image.fromarray(BYTES)]):
        drawn = prediction.draw()
        assert drawn.size == (12, 10)


def test_no_images_give_no_predictions(predictor: Predictor) -> None:
    assert predictor([]) == []
    assert predictor(iter([])) == []


def test_an_unreadable_image_does_not_end_the_others(predictor: Predictor, tmp_path: Path) -> None:
    good = write_image(tmp_path / "good.png")
    bad = write_broken(tmp_path / "bad.png")
    content = good.read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    opened = Image.open(tmp_path / "cut.png")
    found = predictor([good, bad, good, opened], batch_size=2)
    assert [p.path for p in found] == [str(good), str(bad), str(good), "image 3"]
    assert [bool(p.error) for p in found] == [False, True, False, True]
    assert found[1].error == "not an image but a text file"
    with pytest.raises(ValueError, match=r"no prediction for .*bad\.png: not an image but a text"):
        _ = found[1].label


def test_nan_is_an_error_of_the_image(predictor: Predictor) -> None:
    broken = Predictor.load(load_of(predictor))
    torch.nn.init.constant_(next(broken.model.parameters()), float("nan"))
    (found,) = broken(BYTES)
    assert found.error == "the model computed NaN for this image"


def load_of(predictor: Predictor) -> Checkpoint:
    """A checkpoint whose model the predictor must copy."""
    model = Predictor.load(Checkpoint(predictor.model, predictor.card, Path("x"))).model
    return Checkpoint(model.train(), predictor.card, Path("x"))


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("gone.png", FileNotFoundError, "there is no image or folder gone.png"),
        ("https://a.org/b.png", ValueError, "https://a.org/b.png is a URL: download it first"),
        (Path("https://a.org/b.png"), ValueError, "is a URL: download it first"),
        (3, TypeError, "images must be a path, a PIL image, a NumPy array or a tensor.* got int"),
        (b"a.png", TypeError, "got bytes"),
        ({"a.png": 1}, TypeError, "got dict"),
        ([b"a.png"], TypeError, "image 0 must be .* got bytes; PIL.Image.open"),
        ([BYTES, [BYTES]], TypeError, "image 1 must be .* got list; give the images themselves"),
        ([BYTES, None], TypeError, "image 1 must be .* got NoneType"),
        (np.zeros(5), ValueError, r"shape \(H, W\), .*got \(5,\)"),
        (np.zeros((3, 9, 9)), ValueError, r"np.moveaxis\(image, -3, -1\).* got \(3, 9, 9\)"),
        (np.zeros((9, 9, 2)), ValueError, r"1, 3 or 4 channels, got \(9, 9, 2\)"),
        (np.zeros((0, 9, 3)), ValueError, r"got \(0, 9, 3\)"),
        (np.zeros((9, 9), np.int64), ValueError, r"got int64; .*\.astype\(np.uint8\)"),
        (np.zeros((9, 9), complex), ValueError, "got complex128"),
        (np.zeros((9, 9), np.int32), ValueError, "of int32 is not known; give value_range="),
        (np.zeros((9, 9, 4)), ValueError, r"alpha channel must hold uint8 or uint16, got float64"),
        (torch.zeros(5), ValueError, r"a tensor must have the shape .*got \(5,\)"),
        (torch.zeros(9, 9, 3), ValueError, r"image.movedim\(-1, -3\).*got \(9, 9, 3\)"),
        (torch.zeros(8, 9, 9), ValueError, r"images\[:, None\], got \(8, 9, 9\)"),
        (torch.zeros(9, 9, dtype=torch.int64), ValueError, r"got torch.int64; .*torch.uint8"),
        (torch.full((3, 9, 9), 255.0), ValueError, "in 0..1 .*from 255 to 255; divide"),
        (torch.full((9, 9), torch.nan), ValueError, "got values from nan to nan"),
    ],
)
def test_a_mistake_names_the_value_and_the_fix(
    predictor: Predictor, image: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        predictor(image)


def test_mistakes_in_a_list_are_found_before_the_work(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        predictor.stream([write_image(tmp_path / "a.png"), "gone.png"])
    with pytest.raises(ValueError, match=r"unknown option of classification 'topk'.*'top_k'"):
        predictor.stream([], topk=3)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        predictor.stream([], batch_size=0)
    with pytest.raises(ValueError, match="value_range must be two increasing numbers"):
        predictor.stream([], value_range=(3, 1))
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        predictor(BYTES, top_k=0)


def test_a_source_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(ValueError, match=r"model\.pt has no format .* run folder or a \.safetens"):
        Predictor.load(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint or run folder .*gone"):
        Predictor.load(tmp_path / "gone.onnx")


def test_threads_share_a_predictor(predictor: Predictor, tmp_path: Path) -> None:
    write_png(tmp_path / "deep.png", DEEP[..., :3])
    Image.fromarray(BYTES).save(tmp_path / "alpha.png")
    shared = Image.open(tmp_path / "alpha.png")
    images: list[Any] = [BYTES, DEEP, tmp_path / "alpha.png", tmp_path / "deep.png", shared, FLOATS]
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = guesses(predictor(images))
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: guesses(predictor(images)), range(32)))
    assert found == [expected] * 32
    assert list(warnings.filters) == before


def test_a_call_changes_nothing_of_the_callers(predictor: Predictor, weights: Path) -> None:
    loaded = load_checkpoint(weights)
    loaded.model.train()
    own = Predictor(loaded)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    numpy_state = str(np.random.get_state())
    given = BYTES.copy()
    for _ in own.stream([given, given], batch_size=1):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert guesses(own(given)) == guesses(predictor(given))
    assert loaded.model.training
    assert all(module.training for module in loaded.model.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert numpy_state == str(np.random.get_state())
    assert threads == torch.get_num_threads()
    assert np.array_equal(given, BYTES)


def test_values_far_from_the_range_of_the_training_are_a_warning(
    deep_predictor: Predictor, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="value_range 0 to 4095 .* become white"):
        deep_predictor(np.full((9, 9), 60_000, np.uint16))
    with pytest.warns(UserWarning, match="images of 8 bits, such as image 0, stay as they are"):
        deep_predictor(BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        deep_predictor(DEEP[..., 0] // 16)


def test_files_that_are_passed_over_are_a_warning(predictor: Predictor, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "b.heic").touch()
    with pytest.warns(UserWarning, match="1 file of other kinds passed over: 1 .heic"):
        predictor(tmp_path)


@pytest.mark.slow
def test_prediction_does_not_import_lightning(weights: Path, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    code = (
        "import sys; from convattn.cli import main; "
        f"main(['predict', {str(weights)!r}, {str(path)!r}, '--output', {str(tmp_path / 'o')!r}]); "
        "print('lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
