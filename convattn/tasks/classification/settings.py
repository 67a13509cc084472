"""Configurations and recipes of classification."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from convattn.tasks import table
from convattn.tasks.classification.config import TrainConfig

RECIPES = table.recipes_of("classification")


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return table.list_recipes("classification")


def load_config(
    recipe: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Return the checked configuration.

    Args:
        recipe: the name of a recipe from `list_recipes`, or a path that ends in .yaml or .yml;
            None for the recipe "digits" if the data is the digits, and else the defaults.
        overrides: settings that replace those of the recipe. Where they set ``epochs`` but not
            ``warmup_epochs``, the warm-up is at most a fifth of the epochs.

    Raises:
        ValueError: an unknown key (the message suggests the nearest), or an invalid value.
        FileNotFoundError: the recipe file does not exist.
    """
    return cast(TrainConfig, table.load_config("classification", recipe, overrides))
