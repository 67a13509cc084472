"""Contours of masks, as polygons and as runs of pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Corners = dict[tuple[int, int], set[int]]  # the directions of the edges that start at each corner

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up


class Contour(NamedTuple):
    """A closed line between the pixels of a mask and the others.

    Args:
        points: its corners x, y, (N, 2).
        area: twice the area inside; negative around a hole.
    """

    points: np.ndarray
    area: int


def find_contours(mask: np.ndarray) -> list[Contour]:
    """Return the contours of a mask, bool (H, W); those around holes have a negative area."""
    corners = _corners(np.pad(mask, 1))
    found = []
    while corners:
        line = np.array(_follow(corners)) - 1  # without the padding
        points = _simplify(line)
        if not _doubled_area(points):  # a line of single pixels
            points = line
        found.append(Contour(points, _doubled_area(points)))
    return found


def joined(contours: list[Contour]) -> np.ndarray:
    """Return one polygon of several contours: lines of no width join them."""
    first, *others = sorted(contours, key=lambda contour: -contour.area)
    points = first.points
    for other in others:
        apart = ((points[:, None] - other.points[None]) ** 2).sum(2)
        here, there = divmod(int(apart.argmin()), len(other.points))
        detour = np.roll(other.points, -there, axis=0)
        points = np.concatenate([points[: here + 1], detour, detour[:1], points[here:]])
    return points


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return COCO's run lengths: of pixels outside, inside, outside, ... column after column."""
    flat = np.concatenate([[False], mask.T.ravel()])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], starts, [mask.size]])).tolist()


def compressed(runs: list[int]) -> str:
    """Return run lengths as COCO's text: differences in groups of five bits."""
    text = []
    for index, run in enumerate(runs):
        left = run - (runs[index - 2] if index > 2 else 0)
        more = True
        while more:
            bits, left = left & 31, left >> 5
            more = left != (-1 if bits & 16 else 0)
            text.append(chr(48 + (bits | 32 if more else bits)))
    return "".join(text)


def _corners(mask: np.ndarray) -> Corners:
    """Return the edges around a mask, which lies on their right."""
    sides = (  # those of the right, down, left and up direction, and where they start
        (mask[1:] & ~mask[:-1], 0, 1),
        (mask[:, :-1] & ~mask[:, 1:], 1, 0),
        (mask[:-1] & ~mask[1:], 1, 1),
        (mask[:, 1:] & ~mask[:, :-1], 1, 1),
    )
    found: Corners = {}
    for direction, (side, dx, dy) in enumerate(sides):
        for y, x in np.argwhere(side).tolist():
            found.setdefault((x + dx, y + dy), set()).add(direction)
    return found


def _follow(corners: Corners) -> list[tuple[int, int]]:
    """Remove the edges of one contour, and return the corners where they start."""
    x, y = next(iter(corners))
    direction = min(corners[x, y])
    edges: dict[tuple[int, int, int], None] = {}  # in their order
    while (x, y, direction) not in edges:
        edges[x, y, direction] = None
        x, y = x + _STEPS[direction][0], y + _STEPS[direction][1]
        turns = ((direction + turn) % 4 for turn in (1, 0, 3))  # right before straight on
        direction = next(turn for turn in turns if turn in corners[x, y])
    for x, y, direction in edges:
        corners[x, y].remove(direction)
        if not corners[x, y]:
            del corners[x, y]
    return [(x, y) for x, y, _ in edges]


def _simplify(points: np.ndarray) -> np.ndarray:
    """Leave out points of a closed line that lie near the line through the others."""
    far = int(((points - points[0]) ** 2).sum(1).argmax())
    closed = np.concatenate([points, points[:1]])
    kept, pending = {0, far}, [(0, far), (far, len(points))]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        along, inner = closed[last] - closed[first], closed[first + 1 : last] - closed[first]
        across = abs(along[0] * inner[:, 1] - along[1] * inner[:, 0])
        worst = int(across.argmax())
        if int(across[worst]) ** 2 * 16 > 9 * int((along**2).sum()):  # 3/4 of a pixel
            middle = first + 1 + worst
            kept.add(middle)
            pending += [(first, middle), (middle, last)]
    return points[sorted(kept)]


def _doubled_area(points: np.ndarray) -> int:
    """Return twice the area of a polygon, positive if its inside is on its right."""
    following = np.roll(points, -1, axis=0)
    return int((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum())
