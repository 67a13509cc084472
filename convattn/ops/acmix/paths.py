"""How ACmix convolves: what is chosen at each call, and what once, where weights stay as they are.

These are two questions. A call folds its weights anew, with their gradients, and may leave it:
where an attention needs q, k and v, the convolution can take those. A deployed form folds them
once, so that it asks only whether one dense convolution or two layers run faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from convattn.ops.acmix.folding import Connected


@dataclass(frozen=True)
class Widths:
    """What the path of the convolution depends on: no size of a map, so none is guarded on."""

    device: str
    in_chans: int
    outputs: int  # N
    stride: int
    alone: bool  # whether nothing else needs q, k and v
    exporting: bool = False


# (path, when, the benchmark behind it): forward and backward, float32, batch 8, on one core, of
# projections and convolution. The copies of q, k and v to (d, J) cost as much as 128 channels of a
# dense convolution do, a stride of 2 makes that four times as many.
RULES: tuple[tuple[str, Callable[[Widths], bool], str], ...] = (
    ("projected", lambda case: case.exporting, "plain operators, as the layer is written"),
    ("projected", lambda case: case.device != "cpu", "not measured"),
    (
        "dense",
        lambda case: case.in_chans <= 128 * case.stride**2,
        "(64, 56) 53 ms against 95 projected; (128, 56) with stride 2 90, 182; (128, 28) 43, 52",
    ),
    (
        "connected",
        lambda case: case.alone or case.outputs > 4,
        "(192, 28), N = 6: 58 ms against 66 projected, 84 dense; (384, 14), N = 12: 29, 39, 75",
    ),
    ("projected", lambda case: True, "(256, 14), N = 4: 26 ms against 27 connected, 41 dense"),
)


def folding_pays(groups: int, num_outputs: int, kernel_size: int, stride: int = 1) -> bool:
    """Say whether the folded convolution has no more multiplications than the two layers.

    ``J N K^2 <= J K^2 s^2 + N K^4``

    Args:
        groups: J.
        num_outputs: N, outputs per channel of a group.
        kernel_size: K.
        stride: s.
    """
    return groups * num_outputs <= groups * stride**2 + num_outputs * kernel_size**2


def dense_pays(parts: Connected, stride: int, merged: int) -> bool:
    """Whether one dense convolution is as fast as a projection and a group convolution.

    Counted in multiplications for one pixel; a dense convolution does 1.5 of them in the time of
    one of the two others. Measured in float32, batch 16, one core, 3 x 3 kernels: (64, 56) 15 ms
    against 16; (128, 28) 15, 10; (256, 14) 14, 7; (128, 56) with stride 2 16, 48; (96, 56), three
    heads, 34, 33, and 17, 21 in bfloat16; (192, 28), six heads, 33, 13.
    """
    d, R, C_in = parts.weight.shape
    C, _, K, _ = parts.kernels.shape
    return C * C_in * K**2 <= 1.5 * (d * R * C_in * stride**2 + C * R * merged * K**2)
