"""Sets of images and their value range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convattn.data import DataSource, FileImages, ImageSet, Joined
from convattn.data.source import ArrayImages


def write_grey(path: Path, value: int) -> str:
    Image.fromarray(np.full((4, 4), value, np.uint16)).save(path)
    return str(path)


def test_joined_sets_use_the_value_range_of_the_source(tmp_path: Path) -> None:
    deep = FileImages([write_grey(tmp_path / "a.png", 1023)], [0])
    plain = ArrayImages(np.full((1, 4, 4), 7, np.uint8), [1])
    joined = Joined(plain, Joined(deep, plain), deep)
    source = DataSource("all", ("a", "b"), train=joined, val=joined).scaled((0, 4095))
    for images in (source.train, source.val):
        pixels = [np.asarray(images.image(index)).max() for index in range(len(images))]
        assert pixels == [7, 64, 7, 64]
        assert [images.label(index) for index in range(len(images))] == [1, 0, 1, 0]


def test_a_set_without_a_method_scaled_is_an_error() -> None:
    class Own(ImageSet):
        def __len__(self) -> int:
            return 0

    source = DataSource("own", ("a", "b"), train=Own(), val=Own())
    with pytest.raises(NotImplementedError, match="Own has no method scaled"):
        source.scaled((0, 4095))
