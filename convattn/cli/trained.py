"""Arguments of the commands that read a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path

from convattn.names import shown


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


def check_exists(checkpoint: str) -> None:
    """Raise `FileNotFoundError` if there is no such file or folder, before anything is imported."""
    if not Path(checkpoint).expanduser().exists():
        raise FileNotFoundError(f"there is no checkpoint or run folder {shown(checkpoint)}")


def check_positive(option: str, value: int | None) -> None:
    """Raise `ValueError` unless an option is absent or at least 1."""
    if value is not None and value < 1:
        raise ValueError(f"{option} must be at least 1, got {value}")
