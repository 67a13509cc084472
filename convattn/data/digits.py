"""The 1,797 real scans of handwritten digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np

from convattn.data.folders.split import stratified_split
from convattn.data.source import ArrayImages, DataSource

HELD_OUT = 360
SPLIT_SEED = 0


def open_digits() -> DataSource:
    """Open the digits: 1,437 scans to learn from and 360 held out, always the same ones.

    The scans are the test part of the "Optical Recognition of Handwritten Digits" data set
    (E. Alpaydin, C. Kaynak, 1998): 8x8 pixels in 17 grey levels, white ink on black, written by
    13 people. They ship inside scikit-learn, so nothing is downloaded. The split is stratified by
    digit and fixed; it mixes the writers, so it measures new scans, not new people.

    Returns:
        A `DataSource` of 10 classes, with one channel. ``hflip`` is False, as a mirrored digit is
        no digit.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn: pip install 'convattn[train]'"
        ) from error
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    labels = bunch.target
    train, val = stratified_split(labels.tolist(), fraction=HELD_OUT / len(labels), seed=SPLIT_SEED)
    return DataSource(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=ArrayImages(pixels[train], labels[train]),
        val=ArrayImages(pixels[val], labels[val]),
        in_chans=1,
        image_size=(8, 8),
        hflip=False,
        crop_pct=1.0,
        background=0,
        split_here=True,
    )
