"""Images that a caller gives to a trained model: paths, PIL images, arrays and tensors."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convattn.data.depth import DeepPixels
from convattn.data.folders.listing import Listing, list_images, passed_over
from convattn.data.images import (
    BrokenImageError,
    ImageInfo,
    deep_info,
    deep_to_8bit,
    image_info,
    opened,
    to_8bit,
)
from convattn.data.reasons import reason
from convattn.data.value_range import ValueRange
from convattn.names import shown

AnyImage = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
Ranges = Mapping[str, ValueRange | None]  # of the kinds "integer" and "float"; None decides it

_SINGLE = (str, os.PathLike, Image.Image, np.ndarray, Tensor)
_KINDS = "a path, a PIL image, a NumPy array or a tensor"
_ADDRESS = re.compile(r"(https?|ftp|s3|gs|hf|file):/|data:", re.IGNORECASE)
_TOLERANCE = 1e-3  # floats of a tensor may exceed 0..1 by so much, as after a sum of float16
_DECODING = threading.Lock()  # Pillow does not decode one opened image in two threads


@dataclass(frozen=True)
class Input:
    """One image that a caller gave.

    Args:
        name: the path, or "image 3" for the fourth image where it has no file.
        value: a path as a text, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W).
    """

    name: str
    value: Any = field(repr=False)

    @property
    def is_file(self) -> bool:
        """Whether the image is in a file."""
        return isinstance(self.value, str)

    def read(self, ranges: Ranges) -> tuple[Image.Image, str]:
        """Return the image, upright, as 8-bit grey or RGB, and the kind of its values.

        Args:
            ranges: for the kinds "integer" (of more than 8 bits) and "float", the values that
                become 0 and 255; None decides them by this image alone.

        Raises:
            BrokenImageError: the image cannot be read.
            ValueError: floats of a tensor are not in 0..1.
        """
        value = self.value
        if isinstance(value, Tensor):
            return _from_array(_tensor_pixels(value, self.name), ranges)
        if isinstance(value, np.ndarray):
            return _from_array(value, ranges)
        try:
            if isinstance(value, Image.Image):
                with _DECODING:
                    return _from_pil(value, ranges)
            with opened(value) as image:
                return _from_pil(image, ranges)
        except Exception as error:  # decoders raise many types for damaged bytes
            raise BrokenImageError(self.name, reason(self.name, error)) from error

    def info(self) -> ImageInfo:
        """Return the size of an image that has no file, its kind and its values."""
        value = self.value
        if isinstance(value, Image.Image):
            with _DECODING:
                return image_info(value)
        height, width = value.shape[:2] if isinstance(value, np.ndarray) else value.shape[-2:]
        if isinstance(value, Tensor) or value.dtype in (np.uint8, np.bool_):
            return ImageInfo((width, height))
        return deep_info((width, height), _kind(value), _deep(value).visible)


@dataclass(frozen=True)
class Inputs:
    """The images of one call, in the caller's order; iterate once.

    Args:
        items: the images.
        total: their number; None for a generator, whose images are taken one by one.
        notes: sentences on the files of folders that were passed over.
    """

    items: Iterable[Input]
    total: int | None
    notes: Sequence[str]


def find_inputs(images: AnyImage | Iterable[AnyImage]) -> Inputs:
    """Return the images that a caller gave; all are checked before the first one is read.

    The images of a generator or another iterator are taken and checked when it is their turn.

    Args:
        images: one or more paths (of a folder all images are taken), PIL images, NumPy arrays (H,
            W) or (H, W, 1, 3 or 4), tensors (H, W) or (C, H, W), or batches (B, C, H, W).

    Raises:
        FileNotFoundError: a path does not exist.
        TypeError: an image is of another type.
        ValueError: an image has a wrong shape or type of values, a path is a URL, or a folder has
            no images.
    """
    if isinstance(images, np.ndarray) and images.dtype.kind in "UO":
        images = images.tolist()  # paths
    if isinstance(images, _SINGLE):
        images = [images]
    elif isinstance(images, (Mapping, bytes)) or not isinstance(images, Iterable):
        raise TypeError(f"images must be {_KINDS}, or several of these, got {_type(images)}")
    finder = _Finder()
    if not isinstance(images, Collection):
        return Inputs(finder.find(images), None, finder.notes)
    found = list(finder.find(images))
    return Inputs(found, len(found), finder.notes)


class _Finder:
    """Finds the images of one call; ``notes`` is complete at the end."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._folders: list[Listing] = []
        self._count = 0

    def find(self, images: Iterable[Any]) -> Iterator[Input]:
        """Yield the images one by one."""
        for image in images:
            for value in self._values(image):
                name = value if isinstance(value, str) else f"image {self._count}"
                self._count += 1
                yield Input(name, value)
        self.notes += passed_over(self._folders)

    def _values(self, image: Any) -> Iterable[Any]:
        name = f"image {self._count}"
        if isinstance(image, (str, os.PathLike)):
            return self._files(os.fspath(image))
        if isinstance(image, Image.Image):
            return [image]
        if isinstance(image, np.ndarray):
            _check_array(image, name)
            return image if image.ndim == 4 else [image]
        if isinstance(image, Tensor):
            _check_tensor(image, name)
            return image if image.ndim == 4 else [image]
        hint = ""
        if isinstance(image, (list, tuple)):
            hint = "; give the images themselves, in one list"
        elif isinstance(image, bytes) or hasattr(image, "read"):
            hint = "; PIL.Image.open opens a file object, io.BytesIO makes one of bytes"
        raise TypeError(f"{name} must be {_KINDS}, got {_type(image)}{hint}")

    def _files(self, path: str) -> Sequence[str]:
        if not isinstance(path, str):
            raise TypeError(f"a path must be a text, got {path!r}; os.fsdecode converts it")
        if _ADDRESS.match(path):
            raise ValueError(f"{shown(path)} is a URL: download it first, and give the file's path")
        place = Path(path).expanduser()
        if place.is_file():
            return [str(place)]
        if not place.is_dir():
            raise FileNotFoundError(f"there is no image or folder {shown(place)}")
        listing = list_images(place)
        if not listing.images:
            others = passed_over([listing])
            raise ValueError("; ".join([f"no images in the folder {shown(place)}", *others]))
        self._folders.append(listing)
        return listing.images


def _check_array(array: np.ndarray, name: str) -> None:
    """Raise `ValueError` unless the array has the shape and type of an image or a batch."""
    shape = array.shape
    channels = shape[-1] if array.ndim > 2 else 1
    kind = array.dtype.newbyteorder("=")
    if array.ndim not in (2, 3, 4) or channels not in (1, 3, 4) or 0 in shape:
        hint = "(H, W), (H, W, C) or (B, H, W, C) with 1, 3 or 4 channels"
        if array.ndim in (3, 4) and shape[-3] in (1, 3, 4) and 0 not in shape:
            hint += "; np.moveaxis(image, -3, -1) puts the channels last"
        raise ValueError(f"{name}: an array must have the shape {hint}, got {shape}")
    if array.dtype.kind not in "buif" or kind in (np.int64, np.uint64):
        raise ValueError(
            f"{name}: an array must hold uint8, integers of 16 or 32 bits, or floats, got "
            f"{array.dtype}; convert values of 0 to 255 with .astype(np.uint8)"
        )
    if channels == 4 and kind not in (np.uint8, np.uint16):
        raise ValueError(
            f"{name}: an array with an alpha channel must hold uint8 or uint16, got {array.dtype}; "
            "leave the alpha channel out with image[..., :3]"
        )


def _check_tensor(tensor: Tensor, name: str) -> None:
    """Raise `ValueError` unless the tensor has the shape and type of an image or a batch."""
    shape = tuple(tensor.shape)
    channels = shape[-3] if tensor.ndim > 2 else 1
    if tensor.ndim not in (2, 3, 4) or channels not in (1, 3, 4) or 0 in shape:
        hint = "(H, W), (C, H, W) or (B, C, H, W) with 1, 3 or 4 channels"
        if tensor.ndim in (3, 4) and shape[-1] in (1, 3, 4) and 0 not in shape:
            hint += "; image.movedim(-1, -3) puts the channels first"
        elif tensor.ndim == 3 and 0 not in shape:
            hint += "; grey images need images[:, None]"
        raise ValueError(f"{name}: a tensor must have the shape {hint}, got {shape}")
    if not (tensor.is_floating_point() or tensor.dtype in (torch.uint8, torch.bool)):
        raise ValueError(
            f"{name}: a tensor must hold uint8, or floats in 0..1, got {tensor.dtype}; convert "
            "values of 0 to 255 with .to(torch.uint8), or give more bits as a NumPy array"
        )


def _tensor_pixels(tensor: Tensor, name: str) -> np.ndarray:
    """Return the tensor as uint8 (H, W) or (H, W, C), from floats in 0..1 as torchvision does."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        low, high = tensor.min().item(), tensor.max().item()
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
            raise ValueError(
                f"{name}: floats of a tensor must be in 0..1 (black to white), got values from "
                f"{low:.4g} to {high:.4g}; divide values of 0 to 255 by 255, leave normalisation "
                "to the predictor, and give other ranges as a NumPy array"
            )
        tensor = tensor.double().clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels: np.ndarray = tensor.numpy()
    return np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels


def _from_pil(image: Image.Image, ranges: Ranges) -> tuple[Image.Image, str]:
    kind = image_info(image, decode=False).kind
    return to_8bit(image, ranges.get(kind)), kind


def _from_array(array: np.ndarray, ranges: Ranges) -> tuple[Image.Image, str]:
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint8:
        return to_8bit(Image.fromarray(np.ascontiguousarray(array))), "8-bit"
    kind = _kind(array)
    return deep_to_8bit(_deep(array), ranges.get(kind)), kind


def _kind(array: np.ndarray) -> Any:
    return "float" if array.dtype.kind == "f" else "integer"


def _deep(array: np.ndarray) -> DeepPixels:
    """Return the values; of 4 channels the last one is the alpha channel."""
    if array.ndim == 3 and array.shape[-1] == 4:
        return DeepPixels(array[..., :3], Image.fromarray((array[..., 3] >> 8).astype(np.uint8)))
    return DeepPixels(array)


def _type(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
