"""Open a data set by its name: "digits", "folder:PATH" or "timm:NAME"."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from convattn.data.digits import open_digits
from convattn.data.folder import open_folder
from convattn.data.source import DataSource
from convattn.data.timm_reader import open_timm
from convattn.names import shown


def open_dataset(
    name: str,
    *,
    class_names: Sequence[str] | None = None,
    val_fraction: float = 0.2,
    split_seed: int = 0,
    max_broken: float = 0.01,
    held_out: Collection[str] | None = None,
    known_broken: Collection[str] = (),
    check: bool = True,
    root: str | Path | None = None,
    download: bool = False,
    train_split: str = "train",
    val_split: str = "validation",
    value_range: Sequence[float] | None = None,
) -> DataSource:
    """Open a data set by name.

    Args:
        name: "digits", "folder:PATH" or "timm:NAME".
        class_names: for folders, see `open_folder`.
        val_fraction: for folders without a held-out part: the share to hold out.
        split_seed: for folders without a held-out part: seed of the split.
        max_broken: for folders: the share of unreadable images that may be skipped.
        held_out: for folders: the images to hold out, see `open_folder`.
        known_broken: for folders: the images that could not be read then.
        check: for folders: whether to decode all images to find the unreadable ones.
        root: for timm's data sets: where the data is stored.
        download: for timm's data sets: whether to download what is missing.
        train_split: for timm's data sets: the part to learn from.
        val_split: for timm's data sets: the part held out.
        value_range: of float and deep images, the values that become 0 and 255, see `open_folder`.

    Returns:
        A `DataSource`.

    Raises:
        ValueError: the name has none of the three forms, or the data is unusable.
        FileNotFoundError: there is nothing at the path.
    """
    kind, colon, rest = name.partition(":")
    if name == "digits":
        return open_digits()
    if kind == "folder" and rest:
        return open_folder(
            rest,
            class_names=class_names,
            val_fraction=val_fraction,
            split_seed=split_seed,
            max_broken=max_broken,
            held_out=held_out,
            known_broken=known_broken,
            check=check,
            value_range=value_range,
        )
    if kind == "timm" and colon:
        return open_timm(
            rest,
            root=root,
            download=download,
            train_split=train_split,
            val_split=val_split,
            value_range=value_range,
        )
    hint = f"; did you mean folder:{shown(name)}?" if Path(name).expanduser().is_dir() else "."
    raise ValueError(
        f"unknown data {name!r}{hint} Known: digits, folder:PATH, timm:NAME "
        "(such as timm:torch/cifar10)"
    )
