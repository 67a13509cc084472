"""A configuration from a recipe and ``KEY=VALUE`` words: defaults < recipe < command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from convattn.names import check_choice
from convattn.runs.files import replacing
from convattn.tasks.classification.config import TrainConfig

_RECIPES = resources.files(__package__) / "recipes"
# YAML 1.1 reads "1e-3" as a word; everyone means the number.
_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    names = [entry.name for entry in _RECIPES.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(recipe: str | Path) -> dict[str, Any]:
    """Read a recipe.

    Args:
        recipe: the name of one that comes with the package, or a path that ends in .yaml or .yml.

    Returns:
        Its settings.

    Raises:
        ValueError: no recipe has this name, or the file is not a list of ``key: value`` lines.
        FileNotFoundError: there is no such file.
    """
    if str(recipe).endswith((".yaml", ".yml")):
        path = Path(recipe).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no recipe file {path}")
        return _parse_recipe(path.read_text(encoding="utf-8"), str(path))
    check_choice("recipe", str(recipe), list_recipes())
    return _parse_recipe((_RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8"), str(recipe))


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` words; values are YAML, and ``model_args.depth=2`` reaches inside.

    Raises:
        ValueError: a word has no "=", or its value is not YAML.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            near = difflib.get_close_matches(word, TrainConfig.model_fields, n=1)
            example = f"{near[0]}=..." if near else "epochs=10"
            raise ValueError(f"settings are KEY=VALUE, such as {example}, got {word!r}")
        key, _, inner = key.partition(".")
        value = _parse_value(text, word)
        if inner:
            values[key] = {**values.get(key, {}), inner: value}
        else:
            values[key] = value
    return values


def load_config(
    recipe: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Return the checked configuration.

    Args:
        recipe: see `load_recipe`; without one the digits have theirs, other data the defaults.
        overrides: settings that win over the recipe's. Where they set ``epochs`` alone, the warm-up
            is at most a fifth of them.

    Raises:
        ValueError: an unknown key (the nearest is named), or a value that does not fit.
    """
    overrides = dict(overrides or {})
    if recipe is None and overrides.get("data", "digits") == "digits":
        recipe = "digits"
    values = {**(load_recipe(recipe) if recipe is not None else {}), **overrides}
    planned = "warmup_epochs" in values and "epochs" not in overrides  # by the recipe, for itself
    if "warmup_epochs" not in overrides and not planned:
        values["warmup_epochs"] = _short_warmup(values)
    return make_config(values)


def _short_warmup(values: Mapping[str, Any]) -> Any:
    """The recipe's warm-up, but no more than a fifth of a training that is shorter than planned."""
    warmup, epochs = (
        values.get(key, TrainConfig.model_fields[key].default)
        for key in ("warmup_epochs", "epochs")
    )
    numbers = all(isinstance(value, int | float) for value in (warmup, epochs))
    return min(warmup, epochs / 5) if numbers and epochs > 0 else warmup


def make_config(values: Mapping[str, Any]) -> TrainConfig:
    """Check settings; raise `ValueError` with one line per mistake."""
    for key in values:
        if key not in TrainConfig.model_fields:
            near = difflib.get_close_matches(key, TrainConfig.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise ValueError(
                f"unknown setting {key!r}{hint} `convattn train --settings` lists them all"
            )
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        raise ValueError("\n".join(_explain(dict(item)) for item in error.errors())) from None


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration so that it can be read back as a recipe."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _parse_recipe(text: str, name: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the recipe {name} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"the recipe {name} must be lines of `key: value`, such as `epochs: 10`")
    return {str(key): _number(value) for key, value in values.items()}


def _parse_value(text: str, word: str) -> Any:
    try:
        return _number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(f"cannot read the value in {word!r}: {error}") from error


def _number(value: Any) -> Any:
    if isinstance(value, str) and _FLOAT.fullmatch(value):
        return float(value)
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    return value


def _explain(error: dict[str, Any]) -> str:
    """One pydantic error as "epochs=many: must be a valid integer (meaning; default 100)"."""
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not error["loc"]:
        return message
    key, *inner = error["loc"]
    field = TrainConfig.model_fields[str(key)]
    where = ".".join(map(str, [key, *inner]))
    message = message.split(", unable to parse")[0]
    return f"{where}={error['input']}: {message} ({field.description}; default {field.default})"
