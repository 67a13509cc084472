"""The message for each kind of file that is not a readable image."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convattn.data.images import BrokenImageError, check_image, load_image
from convattn.data.reasons import reason
from tests.data.deep_files import Order, write_tiff

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HEIC = struct.pack(">I", 24) + b"ftypheic" + bytes(12)


def why(path: Path) -> str:
    with pytest.raises(BrokenImageError) as error:
        load_image(path)
    with pytest.raises(BrokenImageError) as again:
        check_image(path)
    assert error.value.reason == again.value.reason
    return error.value.reason


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty (0 bytes)"),
        (POINTER, "a Git LFS pointer: fetch the image itself with git lfs pull"),
        (b"\n <!DOCTYPE html><html>", "an HTML page: the download failed, or asked for a login"),
        (b"<HTML><body>404</body></HTML>", "an HTML page"),
        (b"<?xml version='1.0'?><svg xmlns=''/>", "an SVG drawing"),
        (b"id,label\n1,cat\n", "a text file"),
        ("größe 猫".encode() * 2000, "a text file"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (HEIC, "a HEIC photo, which Pillow does not read: convert it to JPEG"),
        (bytes(128) + b"DICM" + b"\x02\x00", "a DICOM file"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"PK\x03\x04\x14", "a ZIP archive"),
        (bytes(5000), "begins with zero bytes only"),
        (bytes(range(128, 256)), "not an image, or damaged from the first bytes on"),
        (b"II*\0\xff\xff\xff\xff", "a damaged TIFF"),
        (b"II*\0" + bytes(100), "a damaged TIFF"),
    ],
)
def test_the_kind_of_a_file_without_an_image_is_named(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert expected in why(path)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.zeros((2, 2, 5), np.uint8), "5 bands of 8-bit unsigned integers"),
        (np.zeros((2, 2, 4), np.uint16), "4 bands of 16-bit unsigned integers"),
        (np.zeros((2, 2, 3), np.float32), "3 bands of 32-bit floats"),
        (np.zeros((2, 2), np.float64), "1 band of 64-bit floats"),
        (np.zeros((2, 2, 2), np.int16), "2 bands of 16-bit signed integers"),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_that_pillow_does_not_read_is_described(
    tmp_path: Path, pixels: np.ndarray, expected: str, order: Order
) -> None:
    bands = pixels.shape[2] if pixels.ndim == 3 else 1
    path = tmp_path / "a.tif"
    write_tiff(path, pixels, order=order, photometric=1, extra=[0] * (bands - 1))
    assert f"a TIFF of {expected}, which Pillow does not read: save it as" in why(path)


def test_the_message_for_a_large_image_names_its_size_and_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)
    path = tmp_path / "slide.png"
    Image.new("1", (3000, 2000)).save(path)
    found = why(path)
    assert found.startswith("too large: 6 megapixels, and Pillow's limit is 4. Cut it into tiles")
    assert "PIL.Image.MAX_IMAGE_PIXELS = None" in found
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(path).size == (3000, 2000)


def test_the_message_for_a_truncated_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for ending in ("jpg", "png", "bmp"):
        path = tmp_path / f"a.{ending}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:900])
        assert why(path).startswith("the file is cut off"), ending


def test_the_messages_for_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    assert why(tmp_path / "a.png") == "a folder, not a file"
    assert why(tmp_path / "b.png") == "there is no such file"


def test_the_message_for_a_file_without_permission(tmp_path: Path) -> None:
    assert "permission denied" in reason(tmp_path / "a.png", PermissionError(13, "denied"))
