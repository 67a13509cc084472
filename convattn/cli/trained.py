"""Arguments of the commands that take a trained model."""

from __future__ import annotations

import argparse


def add_model(parser: argparse.ArgumentParser) -> None:
    """Declare which checkpoint."""
    parser.add_argument("checkpoint", help="a run folder, or a .safetensors or .ckpt file")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Declare how images are read and computed."""
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time [64]")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps [a GPU if there is one]")
    parser.add_argument(
        "--value-range",
        nargs=2,
        type=float,
        metavar=("BLACK", "WHITE"),
        help="values of float images and those of more than 8 bits [the training's]",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
