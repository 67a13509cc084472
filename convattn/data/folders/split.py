"""Splits into images to learn from and images held out, the same ones every time."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Collection, Sequence

from convattn.names import counted, listed, nfc


def stratified_split(
    labels: Sequence[int], *, fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split the indices of ``labels`` into (kept, held out), each class in the same proportion.

    The result depends on the labels, the fraction and the seed alone, on every machine and in
    every version of every library. ``ceil(fraction * N)`` are held out in all; classes whose share
    is not whole are rounded so that the total is exact. A class of one image stays in training.

    Args:
        labels: the class of each image.
        fraction: the share to hold out, between 0 and 1.
        seed: which split.

    Returns:
        Two sorted lists of indices.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction must lie between 0 and 1, got {fraction}; 0.2 is usual")
    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    rng = random.Random(seed)
    held_out: list[int] = []
    for label, count in _shares(members, fraction).items():
        held_out += rng.sample(members[label], count)
    chosen = set(held_out)
    return [i for i in range(len(labels)) if i not in chosen], sorted(held_out)


def split_by_name(
    names: Sequence[str], held_out: Collection[str]
) -> tuple[list[int], list[int], list[str]]:
    """Split the indices of ``names`` into (kept, held out) by the names that are held out.

    A name that is not found as it is written is looked for in Unicode's form NFC, as copying a
    folder to another system may change the form.

    Args:
        names: a relative name for each image.
        held_out: the names to hold out.

    Returns:
        Two sorted lists of indices, and those of ``held_out`` that are not among the names.
    """
    exact = set(held_out).intersection(names)
    by_form = {nfc(name): name for name in held_out if name not in exact}
    found = {name: by_form[nfc(name)] for name in names if by_form and nfc(name) in by_form}
    found |= {name: name for name in exact}
    missing = set(held_out).difference(found.values())
    parts: tuple[list[int], list[int]] = ([], [])
    for index, name in enumerate(names):
        parts[name in found].append(index)
    return *parts, [name for name in held_out if name in missing]


def split_as_before(
    names: Sequence[str], broken: Sequence[str], held_out: Collection[str], root: str
) -> tuple[list[int], list[int], list[str]]:
    """Hold out the images of an earlier split; all others, new ones too, are learnt from.

    Args:
        names: relative names of the readable images.
        broken: those of the unreadable images.
        held_out: those of the images that were held out.
        root: the folder of the data set, for messages.

    Returns:
        Two sorted lists of indices of ``names``, to learn from and held out, and sentences on the
        images that are gone.

    Raises:
        ValueError: none of the held-out images is there.
    """
    kept, held, gone = split_by_name([*names, *broken], held_out)
    if held_out and not held:
        raise ValueError(
            f"{root} holds none of the {len(held_out):,} images that were held out, such as "
            f"{listed(gone, 1)}; give the folder that holds them"
        )
    notes = []
    if gone:
        are = "is" if len(gone) == 1 else "are"
        notes.append(
            f"{len(gone):,} of {counted(len(held_out), 'image')} that were held out {are} no "
            f"longer in {root}: {listed(gone)}"
        )
    kept, held = ([i for i in indices if i < len(names)] for indices in (kept, held))
    return kept, held, notes


def _shares(members: dict[int, list[int]], fraction: float) -> dict[int, int]:
    """Return how many images of each class to hold out, rounded by largest remainder."""
    exact = {label: fraction * len(members[label]) for label in sorted(members)}
    shares = {label: math.floor(value) for label, value in exact.items()}
    missing = math.ceil(round(sum(exact.values()), 6)) - sum(shares.values())
    by_remainder = sorted(exact, key=lambda label: (shares[label] - exact[label], label))
    for label in by_remainder[:missing]:
        shares[label] += 1
    return {label: min(share, len(members[label]) - 1) for label, share in shares.items()}
