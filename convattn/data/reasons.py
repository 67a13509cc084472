"""Messages that say why an image cannot be read and what to do."""

from __future__ import annotations

import contextlib
from pathlib import Path

from PIL import Image
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    IMAGEWIDTH,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    ImageFileDirectory_v2,
)

from convattn.data.quiet import no_warnings

_HEAD = 4096
_UNKNOWN = "not an image, or damaged from the first bytes on"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Offset in the file, bytes there, kind of file.
_KINDS = (
    (0, b"version https://git-lfs", "a Git LFS pointer: fetch the image itself with git lfs pull"),
    (0, b"%PDF", "a PDF document: save its pages as PNG"),
    (0, b"PK\x03\x04", "a ZIP archive: unpack it"),
    (0, b"\x1f\x8b", "a gzip archive: unpack it"),
    (0, b"\x93NUMPY", "a NumPy array: save it as TIFF or PNG"),
    (0, b"\x89HDF", "an HDF5 file: save its images as TIFF or PNG"),
    (128, b"DICM", "a DICOM file: export it as TIFF or PNG"),
    (4, b"ftyphe", "a HEIC photo, which Pillow does not read: convert it to JPEG"),
    (4, b"ftypmif1", "a HEIF photo, which Pillow does not read: convert it to JPEG"),
    (4, b"ftyp", "a video: save its frames as JPEG"),
    (0, b"\xff\x0a", "a JPEG XL image, which Pillow does not read: convert it to PNG"),
    (4, b"JXL ", "a JPEG XL image, which Pillow does not read: convert it to PNG"),
)
_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "floats"}


def reason(path: str | Path, error: BaseException) -> str:
    """Return why opening or decoding the image at ``path`` raised ``error``."""
    if isinstance(error, ImportError) and error.__context__ is not None:
        # Ultralytics replaces Image.open by a function that imports one more decoder.
        return reason(path, error.__context__)
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file"
    if isinstance(error, PermissionError):
        return "this user may not read the file (permission denied)"
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(str(error))
    text = (str(error).split(" <")[0].splitlines() or [""])[0]
    if "cannot identify" in text:
        with contextlib.suppress(OSError):  # a member of an archive has no path
            return _unidentified(Path(path))
        return _UNKNOWN
    if "truncated" in text.lower():
        return f"the file is cut off ({text})"
    return text or type(error).__name__


def _too_large(text: str) -> str:
    """Return the message; the first number in ``text``, which is Pillow's, counts the pixels."""
    pixels = next((int(word.strip("(")) for word in text.split() if word.strip("(").isdigit()), 0)
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return (
        f"too large: {pixels / 1e6:,.0f} megapixels, and Pillow's limit is {limit / 1e6:,.0f}. Cut "
        "it into tiles or scale it down; in Python, PIL.Image.MAX_IMAGE_PIXELS = None removes the "
        "limit"
    )


def _unidentified(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "the file is empty (0 bytes)"
    if head.startswith(_TIFF):
        return _tiff(path)
    if not any(head):
        return "the file begins with zero bytes only: it was not copied or downloaded completely"
    for start, magic, kind in _KINDS:
        if head[start:].startswith(magic):
            return f"not an image but {kind}"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "not an image but an HTML page: the download failed, or asked for a login"
    if b"<svg" in text:
        return "not an image but an SVG drawing: save it as PNG"
    return "not an image but a text file" if _is_text(head) else _UNKNOWN


def _is_text(head: bytes) -> bool:
    with contextlib.suppress(UnicodeDecodeError):
        return all(c.isprintable() or c.isspace() for c in head[: _HEAD - 4].decode())
    return False


def _tiff(path: Path) -> str:
    """Return a description of a TIFF that Pillow does not read."""
    try:
        with path.open("rb") as file, no_warnings:
            head = file.read(8)
            tags = ImageFileDirectory_v2(head + file.read(8) if 43 in head[2:4] else head)
            file.seek(tags.next)
            tags.load(file)
        tags[IMAGEWIDTH]  # raises KeyError if it is missing
        bands, bits = tags.get(SAMPLESPERPIXEL, 1), tags.get(BITSPERSAMPLE, (1,))
        values = _FORMATS[tags.get(SAMPLEFORMAT, (1,))[0]]
    except Exception:  # damaged tags raise many types
        return "a damaged TIFF: its tags cannot be read"
    counted = "1 band" if bands == 1 else f"{bands} bands"
    return (
        f"a TIFF of {counted} of {bits[0]}-bit {values}, which Pillow does not read: save it as "
        "grey (8 or 16 bits, or 32-bit floats), RGB or RGBA (8 or 16 bits)"
    )
