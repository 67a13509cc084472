"""Files that Pillow reads and cannot write: TIFFs of any layout, PNGs of 16-bit colours."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

Order = Literal["<", ">"]
SHORT, LONG = 3, 4
FORMATS = {"u": 1, "i": 2, "f": 3}


def write_tiff(
    path: Path,
    pixels: np.ndarray,
    *,
    order: Order = "<",
    planes: bool = False,
    photometric: int | None = None,
    extra: list[int] | None = None,
    deflate: bool = False,
) -> Path:
    """Write a TIFF of ``pixels`` (H, W) or (H, W, bands) in their own type.

    Args:
        path: the file.
        pixels: the values.
        order: "<" or ">", of the bytes.
        planes: one band after the other, not mixed.
        photometric: 1 for grey, 2 for RGB; by default by the number of bands.
        extra: what the bands after the colours are: 0 for nothing known.
        deflate: compress.
    """
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, bands = pixels.shape
    laid = np.moveaxis(pixels, 2, 0) if planes else pixels
    data = laid.astype(pixels.dtype.newbyteorder(order)).tobytes()
    length = len(data) // (bands if planes else 1)
    strips = [data[start : start + length] for start in range(0, len(data), length)]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    tags: dict[int, tuple[int, list[int]]] = {
        256: (SHORT, [width]),
        257: (SHORT, [height]),
        258: (SHORT, [pixels.dtype.itemsize * 8] * bands),
        259: (SHORT, [8 if deflate else 1]),
        262: (SHORT, [photometric or (1 if bands < 3 else 2)]),
        273: (LONG, [0] * len(strips)),
        277: (SHORT, [bands]),
        278: (SHORT, [height]),
        279: (LONG, [len(strip) for strip in strips]),
        284: (SHORT, [2 if planes else 1]),
        339: (SHORT, [FORMATS[pixels.dtype.kind]] * bands),
    }
    if extra is not None:
        tags[338] = (SHORT, extra)
    after_tags = 8 + 2 + 12 * len(tags) + 4
    for _ in range(2):  # the first time tells how long the tags are
        entries, long = _entries(tags, order, after_tags)
        start = after_tags + len(long)
        tags[273] = (LONG, [start + len(b"".join(strips[:i])) for i in range(len(strips))])
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}IH", 8, len(tags))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + entries + bytes(4) + long + b"".join(strips))
    return path


def _entries(tags: dict[int, tuple[int, list[int]]], order: str, after: int) -> tuple[bytes, bytes]:
    entries, long = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == SHORT else 'I'}", *values)
        entries += struct.pack(f"{order}HHI", tag, kind, len(values))
        if len(packed) > 4:
            entries += struct.pack(f"{order}I", after + len(long))
            long += packed
        else:
            entries += packed.ljust(4, b"\0")
    return entries, long


def write_png(path: Path, pixels: np.ndarray) -> Path:
    """Write a PNG of 16 bits: ``pixels`` (H, W, 1 to 4), grey, grey with alpha, RGB or RGBA."""
    height, width, bands = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks))
    return path


def chunk(name: bytes, content: bytes) -> bytes:
    checked = name + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))
