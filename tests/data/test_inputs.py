from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convattn.data import BrokenImageError, find_inputs, load_image
from convattn.data.inputs import Ranges
from tests.data.class_folders import write_image
from tests.data.deep_files import write_png

RANGES: Ranges = {"integer": (0.0, 65535.0), "float": None}
BYTES = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)


def test_the_images_of_a_list_are_counted_and_those_of_an_iterator_are_not() -> None:
    assert find_inputs([BYTES, torch.zeros(2, 3, 4, 4)]).total == 3
    found = find_inputs(iter([BYTES, BYTES]))
    assert found.total is None
    assert [item.name for item in found.items] == ["image 0", "image 1"]


def test_paths_may_be_an_array_of_texts(tmp_path: Path) -> None:
    paths = [str(write_image(tmp_path / name)) for name in ("b.png", "a.png")]
    assert [item.name for item in find_inputs(np.array(paths)).items] == paths


@pytest.mark.parametrize("name", ["http://a/b.png", "S3://a/b.png", "data:image/png;base64,AAAA"])
def test_an_address_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is a URL: download it first"):
        find_inputs(name)


def test_folders_keep_their_notes_until_all_images_are_taken(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "b.heic").touch()
    assert find_inputs([tmp_path]).notes == ["1 file of other kinds passed over: 1 .heic"]
    lazy = find_inputs(iter([tmp_path]))
    assert lazy.notes == []
    assert len(list(lazy.items)) == 1
    assert lazy.notes == ["1 file of other kinds passed over: 1 .heic"]


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_an_opened_deep_image_is_left_undecoded_and_read_as_its_file(
    tmp_path: Path, bands: int
) -> None:
    pixels = np.random.default_rng(1).integers(0, 65536, (4, 5, bands)).astype(np.uint16)
    path = write_png(tmp_path / "deep.png", pixels)
    expected = load_image(path, RANGES["integer"])
    with Image.open(path) as image:
        (item,) = find_inputs(image).items
        for _ in range(2):
            found, kind = item.read(RANGES)
            assert (found.tobytes(), kind) == (expected.tobytes(), "integer")
        assert image.mode == Image.open(path).mode
        assert image.tobytes() == Image.open(path).tobytes()


def test_reading_changes_no_array_and_no_tensor() -> None:
    tensor = torch.from_numpy(BYTES.copy()).movedim(-1, 0) / 255
    array, before = BYTES.copy(), tensor.clone()
    for item in find_inputs([array, tensor]).items:
        assert np.array_equal(np.asarray(item.read(RANGES)[0]), BYTES)
    assert np.array_equal(array, BYTES)
    assert torch.equal(tensor, before)


def test_a_file_that_is_gone_is_a_broken_image(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    (item,) = find_inputs(path).items
    path.unlink()
    with pytest.raises(BrokenImageError, match="there is no such file"):
        item.read(RANGES)


def test_floats_just_outside_0_to_1_are_taken_as_0_and_1() -> None:
    (item,) = find_inputs(torch.tensor([[-0.0005, 1.0005]])).items
    assert np.asarray(item.read(RANGES)[0]).tolist() == [[0, 255]]
