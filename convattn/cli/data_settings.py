"""KEY=VALUE words that say how a data set is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convattn.names import check_choice, shown

NAMES = (
    "json", "images", "classes", "ignored", "train_split", "val_split", "root", "download",
)  # fmt: skip


def read_settings(words: Sequence[str], example: str) -> dict[str, Any]:
    """Return the arguments of `open_dataset` that words such as "images=photos" give.

    Args:
        words: the words of a command line.
        example: a word for messages.

    Raises:
        ValueError: a word is no setting of a data set, or its value is invalid.
    """
    settings: dict[str, Any] = dict(_setting(word, example) for word in words)
    if "ignored" in settings:
        settings["ignored"] = _number("ignored", settings["ignored"])
    if "download" in settings:
        check_choice("download", settings["download"], ("true", "false"))
        settings["download"] = settings["download"] == "true"
    return settings


def _setting(word: str, example: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not value:
        raise ValueError(f"{shown(word)!r} is no setting: write NAME=VALUE, such as {example}")
    check_choice("setting", name, NAMES)
    return name, value


def _number(name: str, value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"{name}={shown(value)} must be a whole number")
    return int(value)
