from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from convattn.data.images import (
    BrokenImageError,
    check_image,
    is_image_file,
    load_image,
    to_8bit,
    to_channels,
)
from tests.data.class_folders import write_broken, write_image


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("1", "L"),
        ("L", "L"),
        ("LA", "RGB"),
        ("P", "RGB"),
        ("RGB", "RGB"),
        ("RGBA", "RGB"),
        ("CMYK", "RGB"),
        ("YCbCr", "RGB"),
        ("HSV", "RGB"),
        ("I", "L"),
        ("F", "L"),
    ],
)
def test_every_mode_becomes_grey_or_rgb(mode: str, expected: str) -> None:
    image = Image.new("RGB", (5, 4), (200, 200, 200)).convert(mode)
    assert to_8bit(image).mode == expected
    assert to_8bit(image).size == (5, 4)


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    found = load_image(tmp_path / "deep.png", (0, 65535))
    assert np.asarray(found).tolist() == [[0, 1, 128, 255]]


def test_floats_between_0_and_1_fill_the_range() -> None:
    values = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    assert np.asarray(to_8bit(Image.fromarray(values))).tolist() == [[0, 128, 255]]


def test_transparent_pixels_are_white() -> None:
    image = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert to_8bit(image).getpixel((0, 0)) == (255, 255, 255)


def test_a_transparent_palette_entry_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png", transparency=0)
    found = load_image(tmp_path / "palette.png")
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (12, 10), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (10, 12)


def test_unicode_names_and_upper_case_extensions_are_read(tmp_path: Path) -> None:
    path = write_image(tmp_path / "Größe 猫.PNG")
    assert is_image_file(path)
    assert load_image(path).size == (12, 10)


@pytest.mark.parametrize("name", [".hidden.png", "notes.txt", "png", "archive.png.zip"])
def test_other_files_are_not_image_files(name: str) -> None:
    assert not is_image_file(Path(name))


def test_a_file_without_an_image_is_broken(tmp_path: Path) -> None:
    path = write_broken(tmp_path / "broken.jpg")
    with pytest.raises(BrokenImageError, match=r"broken\.jpg: not an image"):
        load_image(path)
    with pytest.raises(BrokenImageError, match="not an image"):
        check_image(path, decode=False)


def test_a_missing_file_is_broken(tmp_path: Path) -> None:
    with pytest.raises(BrokenImageError, match="no such file"):
        load_image(tmp_path / "gone.png")


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_truncated_image_is_found_by_decoding(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"cut.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:900])
    check_image(path, decode=False)  # the header is complete
    with pytest.raises(BrokenImageError):
        check_image(path)
    with pytest.raises(BrokenImageError):
        load_image(path)


def test_grey_becomes_rgb_and_rgb_becomes_grey() -> None:
    grey, color = Image.new("L", (2, 2), 7), Image.new("RGB", (2, 2), (7, 7, 7))
    assert to_channels(grey, 3).getpixel((0, 0)) == (7, 7, 7)
    assert to_channels(color, 1).getpixel((0, 0)) == 7
    assert to_channels(grey, 1) is grey


def test_the_missing_decoder_of_a_library_is_not_the_reason(tmp_path, monkeypatch):
    """Ultralytics replaces Image.open by a function that imports a decoder for HEIF."""
    real = Image.open

    def opens(path: Path) -> Image.Image:
        try:
            return real(path)
        except UnidentifiedImageError:
            raise ModuleNotFoundError("No module named 'pi_heif'")  # noqa: B904  # as Ultralytics does

    monkeypatch.setattr(Image, "open", opens)
    (tmp_path / "b.png").write_bytes(b"text")
    with pytest.raises(BrokenImageError, match="not an image"):
        load_image(tmp_path / "b.png")
