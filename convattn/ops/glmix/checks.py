"""Checks of the arguments of GLMix's operators."""

from __future__ import annotations

from torch import Tensor

from convattn.checks import check_map, check_positive, check_tensor


def check_grid(grid: tuple[int, int]) -> None:
    """Raise an error unless ``grid`` is (rows, columns), both positive integers."""
    if not isinstance(grid, (tuple, list)) or len(grid) != 2:
        raise ValueError(f"grid must be (rows, columns), got {grid!r}")
    check_positive("rows of the grid", grid[0])
    check_positive("columns of the grid", grid[1])


def check_slots(slots: Tensor, u: Tensor, name: str) -> Tensor:
    """Return slots (B, M, C); raise an error unless they are (B or 1, M, C) for the map ``u``."""
    check_map(u, "u")
    check_tensor(name, slots)
    B, C = u.shape[:2]
    fits = slots.dim() == 3 and slots.shape[0] in (1, B) and slots.shape[2] == C
    if not fits or slots.shape[1] < 1:
        raise ValueError(
            f"{name} must have shape ({B}, slots, {C}) for u of shape {tuple(u.shape)}, "
            f"got {tuple(slots.shape)}"
        )
    if not slots.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {slots.dtype}")
    return slots.expand(B, -1, -1)


def check_number(slots: Tensor, prototypes: Tensor) -> None:
    """Raise an error unless there are as many slots as prototypes."""
    if prototypes.shape[1] != slots.shape[1]:
        raise ValueError(
            f"prototypes and slots must be equally many, got {prototypes.shape[1]} and "
            f"{slots.shape[1]}"
        )


def check_scale(scale: Tensor | float) -> None:
    """Raise an error unless ``scale`` is a number or a tensor with one number."""
    if isinstance(scale, Tensor):
        if scale.numel() != 1:
            raise ValueError(f"scale must have one element, got shape {tuple(scale.shape)}")
    elif not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be a number or a tensor, got {scale!r}")


def check_attended(slots: Tensor, prototypes: Tensor, u: Tensor) -> Tensor:
    """Return the attended slots (B, M, C); raise an error unless each prototype has one."""
    slots = check_slots(slots, u, "attended slots")
    check_number(slots, prototypes)
    return slots
