"""The functions of the compiled library: their types, and the ABI that C and Python agree on."""

from __future__ import annotations

import ctypes
from struct import Struct
from typing import Any

import torch

# Change it with every change of a signature or a struct, here and in `vectors.h`.
ABI_VERSION = 1
DTYPES = (torch.float32, torch.bfloat16)

# Structs of the C files, where their fields are documented; each field has 8 bytes.
MAP = Struct("@6q")  # data, image, channel, row, column, half
MAPS = {count: Struct(f"@{6 * count}q") for count in (4, 5, 8)}
SLIDING_TASK = Struct("@12qd")
HEADS_TASK = Struct("@8qd3q")

_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "x": ctypes.c_float}
# A letter for each argument: p address, n integer, x float. Functions return an integer or nothing.
_SIGNATURES = {
    "rows_abi": "",
    "rows_layer_norm": "ppppppnnxnn",
    "rows_directions": "ppnnxxnn",
    "rows_similarities": "pppppnnnnnxnn",
    "rows_workspace": "nn",
    "rows_scale": "ppnnnn",
    "heads_abi": "",
    "heads_workspace": "p",
    "heads": "pppp",
    "sliding_abi": "",
    "sliding_workspace": "pn",
    "sliding": "pppn",
}
_ABI = {"rows_abi": 0, "heads_abi": HEADS_TASK.size, "sliding_abi": SLIDING_TASK.size}


class AbiError(RuntimeError):
    """The signatures or structs of a compiled library differ from those of this package."""


class Kernels:
    """The functions of a compiled library, as attributes.

    Raises:
        AbiError: the ABI of the library differs from the ABI of this package.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, kinds in _SIGNATURES.items():
            function = getattr(library, name, None)
            if function is None:
                raise AbiError(f"the compiled kernels have no function {name!r}")
            function.restype, function.argtypes = ctypes.c_int64, [_TYPES[kind] for kind in kinds]
            setattr(self, name, function)
        for name, task_size in _ABI.items():
            expected, found = (ABI_VERSION, task_size, MAP.size), abi(getattr(self, name)())
            if found != expected:
                raise AbiError(
                    f"the compiled kernels have ABI {found} in {name!r}, this package calls "
                    f"{expected}"
                )

    def __getattr__(self, name: str) -> Any:  # for type checkers: `__init__` sets all functions
        raise AttributeError(name)


def abi(number: int) -> tuple[int, int, int]:
    """Unpack an ABI number of the library: version, size of a task and of a map in bytes."""
    return number >> 32, number >> 16 & 0xFFFF, number & 0xFFFF


def is_half(*tensors: torch.Tensor) -> bool:
    """Return True if all tensors are bfloat16, and False if all are float32.

    Raises:
        TypeError: the tensors have another dtype, or different dtypes.
    """
    dtype = tensors[0].dtype
    for t in tensors:
        if t.dtype != dtype or dtype not in DTYPES:
            found = ", ".join(str(t.dtype) for t in tensors)
            raise TypeError(f"kernels in C compute float32 or bfloat16, one of them, got {found}")
    return dtype == torch.bfloat16


def workspace(like: torch.Tensor, size: int) -> torch.Tensor:
    """Return scratch memory of ``size`` floats on the device of a tensor."""
    return like.new_empty(size if like.dtype == torch.float32 else 2 * size)
