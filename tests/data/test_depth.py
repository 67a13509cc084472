from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convattn.data.images import check_image, load_image
from tests.data.deep_files import Order, chunk, write_png, write_tiff

TWELVE_BITS = (0.0, 4095.0)
COLORS = np.array([[[0, 1000, 4095], [2047, 4, 3000]]], dtype=np.uint16)
RIGHT = [[[0, 62, 255], [127, 0, 187]]]


def read(path: Path, value_range: tuple[float, float] = TWELVE_BITS) -> list[object]:
    return np.asarray(load_image(path, value_range)).tolist()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("planes", "deflate"), [(False, False), (False, True), (True, False)])
def test_a_tiff_of_16_bit_colours_keeps_its_bits(
    tmp_path: Path, order: Order, planes: bool, deflate: bool
) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, COLORS, order=order, planes=planes, deflate=deflate)
    assert read(path) == RIGHT


def test_compressed_planes_keep_the_upper_bytes(tmp_path: Path) -> None:
    """Pillow decodes no others of them."""
    path = write_tiff(tmp_path / "a.tif", COLORS, planes=True, deflate=True)
    upper = (COLORS >> 8) * 257 / 4095 * 255
    assert read(path) == np.rint(upper).astype(int).tolist()


def test_a_png_of_16_bit_colours_keeps_its_bits(tmp_path: Path) -> None:
    assert read(write_png(tmp_path / "a.png", COLORS)) == RIGHT


def test_deep_transparent_pixels_are_white(tmp_path: Path) -> None:
    alpha = np.array([[[65535], [0]]], dtype=np.uint16)
    path = write_png(tmp_path / "a.png", np.concatenate([COLORS, alpha], axis=2))
    assert read(path) == [[[0, 62, 255], [255, 255, 255]]]


def test_deep_grey_with_alpha_keeps_its_bits(tmp_path: Path) -> None:
    pixels = np.array([[[1000, 65535], [1000, 0]]], dtype=np.uint16)
    assert read(write_png(tmp_path / "a.png", pixels)) == [[[62] * 3, [255] * 3]]


@pytest.mark.parametrize("pixels", [COLORS, COLORS[..., :1]], ids=["colour", "grey"])
def test_the_transparent_colour_of_a_deep_image_is_white(
    tmp_path: Path, pixels: np.ndarray
) -> None:
    path = write_png(tmp_path / "a.png", pixels)
    color = b"".join(int(value).to_bytes(2, "big") for value in pixels[0, 1])
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk(b"tRNS", color) + content[33:])
    first = RIGHT[0][0] if pixels.shape[2] == 3 else [RIGHT[0][0][0]] * 3
    assert read(path) == [[first, [255] * 3]]
    values = check_image(path).values
    assert values is not None
    assert set(values) == set(pixels[0, 0])  # hidden pixels do not count


@pytest.mark.parametrize("kind", ["u2", "i2", "i4", "f4"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_grey_of_any_depth_and_order_is_read(tmp_path: Path, kind: str, order: Order) -> None:
    path = write_tiff(tmp_path / "a.tif", np.array([[0, 1000, 4095]], dtype=kind), order=order)
    assert read(path) == [[0, 62, 255]]


def test_negative_values_are_below_zero(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", np.array([[-1000, 0, 1000]], dtype=np.int16))
    assert read(path, (-1000, 1000)) == [[0, 128, 255]]
    path = write_tiff(tmp_path / "a.tif", np.array([[-100, 0, 100]], dtype=np.int8))
    assert read(path, (-100, 100)) == [[0, 128, 255]]


def test_large_unsigned_values_are_not_negative(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", np.array([[0, 2**31, 2**32 - 1]], dtype=np.uint32))
    assert read(path, (0, 2**32 - 1)) == [[0, 128, 255]]


@pytest.mark.parametrize("pixels", [COLORS, COLORS[..., 0]], ids=["colour", "grey"])
def test_deep_images_are_turned_upright(tmp_path: Path, pixels: np.ndarray) -> None:
    plain = tmp_path / "a.png"
    if pixels.ndim == 3:
        write_png(plain, pixels)
    else:
        Image.fromarray(pixels).save(plain)
    quarter_turn = Image.Exif()
    quarter_turn[0x0112] = 6
    content = plain.read_bytes()
    block = quarter_turn.tobytes().removeprefix(b"Exif\0\0")
    plain.write_bytes(content[:33] + chunk(b"eXIf", block) + content[33:])
    assert load_image(plain, TWELVE_BITS).size == (1, 2)
    expected = np.array(RIGHT, np.uint8) if pixels.ndim == 3 else np.array(RIGHT)[..., 0]
    assert np.asarray(load_image(plain, TWELVE_BITS)).tolist() == np.rot90(expected, -1).tolist()


def test_eight_bit_images_do_not_depend_on_the_range(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 100, 255)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", (0, 10)) == [[[1, 100, 255]]]


@pytest.mark.filterwarnings("error")
def test_without_a_range_a_deep_image_is_scaled_by_its_own_values_with_a_warning(
    tmp_path: Path,
) -> None:
    path = write_tiff(tmp_path / "a.tif", np.array([[0, 1000, 4095]], dtype=np.uint16))
    with pytest.warns(UserWarning, match="give the value_range of the model"):
        assert np.asarray(load_image(path)).tolist() == [[0, 62, 255]]
    assert read(path, (0, 65535)) == [[0, 4, 16]]
    Image.new("L", (1, 1)).save(tmp_path / "plain.png")
    assert load_image(tmp_path / "plain.png").getpixel((0, 0)) == 0
