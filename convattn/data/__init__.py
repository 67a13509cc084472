"""Data sets by name, images as PIL, transforms as timm makes them; knows no model."""

from convattn.data.images import BrokenImageError, load_image
from convattn.data.loading import (
    BROKEN,
    PADDING,
    READABLE,
    Sample,
    default_workers,
    eval_loader,
    train_loader,
)
from convattn.data.named import open_dataset
from convattn.data.source import BrokenFile, DataSource, FileImages, ImageSet, Joined
from convattn.data.transforms import (
    Augment,
    Preprocess,
    eval_transform,
    preprocess_for,
    train_transform,
)

__all__ = [
    "BROKEN",
    "PADDING",
    "READABLE",
    "Augment",
    "BrokenFile",
    "BrokenImageError",
    "DataSource",
    "FileImages",
    "ImageSet",
    "Joined",
    "Preprocess",
    "Sample",
    "default_workers",
    "eval_loader",
    "eval_transform",
    "load_image",
    "open_dataset",
    "preprocess_for",
    "train_loader",
    "train_transform",
]
