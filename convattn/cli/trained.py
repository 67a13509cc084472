"""Arguments of the commands that read a trained model."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from convattn.names import shown

EVALUATE_OPTIONS: Mapping[str, Mapping[str, Any]] = {  # those of the tasks' `outputs`
    "score": {
        "type": float,
        "help": "detection: objects of a lower score are left out [the training's]",
    },
    "nms": {
        "type": float,
        "help": "detection: of two boxes of a class whose IoU is higher, the one with the lower "
        "score is left out [the training's]",
    },
    "inference": {
        "metavar": "whole|slide",
        "help": "segmentation: the whole image at once, or windows [the training's]",
    },
    "window": {"type": int, "help": "segmentation: height and width of a window"},
    "window_stride": {"type": int, "help": "segmentation: distance of two windows"},
    "flip": {
        "action": "store_const",
        "const": True,
        "help": "segmentation: average with the result of the mirrored image",
    },
}


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare the argument that names the checkpoint."""
    parser.add_argument("checkpoint", help="a run folder, or a .safetensors or .ckpt file")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Declare the options for reading images and running the model."""
    parser.add_argument(
        "--batch-size", type=int, help="images at a time [64, or 4 of detection and segmentation]"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps [a GPU if there is one]")
    parser.add_argument(
        "--value-range",
        nargs=2,
        type=float,
        metavar=("BLACK", "WHITE"),
        help="values of float images and those of more than 8 bits [the training's]",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_options(parser: argparse.ArgumentParser, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Declare the options of the tasks."""
    for name, option in options.items():
        parser.add_argument(_flag(name), **option)


def given_options(
    args: argparse.Namespace, options: Iterable[str], known: Collection[str], task: str
) -> dict[str, Any]:
    """Return the options that are given.

    Args:
        args: of the command line.
        options: the names of all options of the tasks.
        known: those of the task of the model.
        task: the name of this task.

    Raises:
        ValueError: an option of another task is given.
    """
    given = {name: value for name in options if (value := getattr(args, name)) is not None}
    for name in given:
        if name not in known:
            raise ValueError(
                f"{_flag(name)} is no option of {task}, the task of this model; its options are: "
                f"{', '.join(map(_flag, known)) or 'none'}"
            )
    return given


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_exists(checkpoint: str) -> None:
    """Raise `FileNotFoundError` if there is no such file or folder, before anything is imported."""
    if not Path(checkpoint).expanduser().exists():
        raise FileNotFoundError(f"there is no checkpoint or run folder {shown(checkpoint)}")


def check_positive(option: str, value: int | None) -> None:
    """Raise `ValueError` unless an option is absent or at least 1."""
    if value is not None and value < 1:
        raise ValueError(f"{option} must be at least 1, got {value}")
