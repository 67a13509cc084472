"""How the kernels are told of a map."""

from __future__ import annotations

import ctypes


class Map(ctypes.Structure):
    """``map_t`` of `vectors.h`: where a map lies, its strides in elements, and its type."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("image", "channel", "row", "column", "half")),
    )
