from __future__ import annotations

import json

import numpy as np
import pytest

from convattn.runs.rle import decode_mask, encode_mask


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (40, 65)])
def test_a_mask_survives_its_encoding_and_json(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(size) > 0.5
    encoded = json.loads(json.dumps(encode_mask(mask)))
    assert encoded["size"] == list(size)
    assert np.array_equal(decode_mask(encoded), mask)


def test_pixels_above_zero_are_the_object() -> None:
    assert encode_mask(np.array([[0, 255]], np.uint8)) == encode_mask(np.array([[False, True]]))
