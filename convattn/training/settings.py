"""A configuration from ``KEY=VALUE`` words, a recipe and defaults, in this order of priority."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from convattn.names import check_choice, shown
from convattn.training.config import RunConfig
from convattn.training.kinds import choices_of, kinds_of
from convattn.training.values import parse_document, parse_text

ConfigT = TypeVar("ConfigT", bound=RunConfig)

# Errors of pydantic for a value that is no list, or a list with too few or too many numbers.
_NOT_THE_LIST = ("tuple_type", "missing", "too_long")


def list_recipes(recipes_folder: Traversable) -> list[str]:
    """Return the sorted names of the recipes in a folder of the package."""
    names = [entry.name for entry in recipes_folder.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(
    config_class: type[RunConfig], recipes_folder: Traversable, recipe: str | Path
) -> dict[str, Any]:
    """Read a recipe.

    Args:
        config_class: the class of the configuration, which has the types of the settings.
        recipes_folder: folder of the recipes that come with the package.
        recipe: the name of a recipe, or a path that ends in .yaml or .yml.

    Returns:
        The settings of the recipe; the values are not checked.

    Raises:
        ValueError: no recipe has this name, or the file does not consist of ``key: value`` lines.
        FileNotFoundError: the file does not exist.
    """
    file: Traversable = recipes_folder / f"{recipe}.yaml"
    if str(recipe).endswith((".yaml", ".yml")):
        file = Path(recipe).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"there is no recipe file {file}")
    else:
        check_choice("recipe", str(recipe), list_recipes(recipes_folder))
    try:
        text = file.read_text(encoding="utf-8")
        return parse_document(text, config_class.model_fields)
    except UnicodeDecodeError as error:
        raise ValueError(f"the recipe {recipe} is not a text file in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"the recipe {recipe} is not YAML: {error}") from error
    except ValueError as error:
        raise ValueError(f"the recipe {recipe} {error}") from error


def parse_overrides(words: Iterable[str], config_class: type[RunConfig]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` words.

    The value of a text setting is taken as it was typed; other values are YAML.
    ``model_args.depth=2`` sets one entry of a setting that is a mapping.

    Raises:
        ValueError: a word has no "=", a value is not YAML, or a word sets an entry of a setting
            that is no mapping.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key or key.endswith("."):
            near = difflib.get_close_matches(word, config_class.model_fields, n=1)
            example = f"{near[0]}=..." if near else "epochs=10"
            raise ValueError(f"settings are KEY=VALUE, such as {example}, got {word!r}")
        key, dot, entry = key.partition(".")
        field = config_class.model_fields.get(key)
        try:
            if dot:
                values[key] = {**_mapping(key, values.get(key, {}), field), entry: parse_text(text)}
            else:
                values[key] = parse_text(text, field)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"cannot read the value in {word!r}: {error}") from error
    return values


def load_config(
    config_class: type[ConfigT],
    recipes_folder: Traversable,
    recipe: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Return the checked configuration.

    Args:
        config_class: the class of the configuration.
        recipes_folder: folder of the recipes that come with the package.
        recipe: see `load_recipe`; None for `RunConfig.default_recipe`.
        overrides: settings that replace those of the recipe. Where they set ``epochs`` but not
            ``warmup_epochs``, the warm-up is at most a fifth of the epochs. ``epochs`` replaces
            ``steps`` of the recipe, and ``steps`` replaces ``epochs``.

    Raises:
        ValueError: an unknown key (the message suggests the nearest), or an invalid value.
    """
    overrides = dict(overrides or {})
    recipe = recipe if recipe is not None else config_class.default_recipe(overrides)
    planned = {} if recipe is None else load_recipe(config_class, recipes_folder, recipe)
    _choose_length(planned, overrides)
    values = {**planned, **overrides}
    own_warmup = "warmup_epochs" in planned and "epochs" not in overrides
    if "warmup_epochs" not in overrides and not own_warmup:
        values["warmup_epochs"] = _short_warmup(config_class, values)
    return make_config(config_class, values, given=overrides)


def _choose_length(planned: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """Remove the epochs of a recipe where the user sets updates, and the other way round.

    Raises:
        ValueError: the user sets both.
    """
    in_epochs = ("epochs", "warmup_epochs", "cooldown_epochs", "decay_epochs", "decay_milestones")
    if overrides.get("steps") is not None:
        if both := [key for key in in_epochs if key in overrides]:
            raise ValueError(
                f"steps={overrides['steps']} and {both[0]}={_typed(overrides[both[0]])} contradict "
                "each other: steps counts updates in place of epochs; leave one out"
            )
        for key in in_epochs:
            planned.pop(key, None)
    elif "epochs" in overrides:
        for key in ("steps", "decay_steps"):
            planned.pop(key, None)


def make_config(
    config_class: type[ConfigT], values: Mapping[str, Any], given: Collection[str] = ()
) -> ConfigT:
    """Check settings and return the configuration.

    Args:
        config_class: the class of the configuration.
        values: the settings.
        given: names of the settings that the user gave, without those of a recipe or of an
            earlier start of the run; they become ``model_fields_set``.

    Raises:
        ValueError: an unknown key, or invalid values; the message has a line for each.
    """
    for key in values:
        if key not in config_class.model_fields:
            near = difflib.get_close_matches(key, config_class.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ";"
            raise ValueError(
                f"unknown setting {key!r}{hint} `convattn train --settings` lists them all"
            )
    try:
        config = config_class(**values)
    except ValidationError as error:
        lines = [_explain(dict(item), config_class) for item in error.errors()]
        raise ValueError("\n".join(lines)) from None
    return config_class.model_construct(set(given), **dict(config))


def describe(config_class: type[RunConfig]) -> str:
    """Return every setting as "name=default", with its meaning on the next line."""
    return "\n".join(
        f"  {key}={_default(field)}\n      {field.description}"
        for key, field in config_class.model_fields.items()
    )


def _mapping(key: str, value: Any, field: Any) -> dict[str, Any]:
    """Return ``value`` if the setting is a mapping, or raise `ValueError`."""
    if field is not None and dict not in kinds_of(field.annotation):
        raise ValueError(f"{key} has no entries; write {key}=VALUE")
    if not isinstance(value, dict):
        raise ValueError(f"{key}={value} was given too; write one of the two")
    return value


def _short_warmup(config_class: type[RunConfig], values: Mapping[str, Any]) -> Any:
    """Return the warm-up epochs, at most a fifth of all epochs."""
    warmup, epochs = (
        values.get(key, config_class.model_fields[key].default)
        for key in ("warmup_epochs", "epochs")
    )
    numbers = all(isinstance(value, int | float) for value in (warmup, epochs))
    return min(warmup, epochs / 5) if numbers and epochs > 0 else warmup


def _explain(error: dict[str, Any], config_class: type[RunConfig]) -> str:
    """Return one error of pydantic as "epochs=many: must be a valid integer (meaning; default)"."""
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not error["loc"]:
        return str(message)
    key, *inner = error["loc"]
    name, value = str(key), error["input"]
    field = config_class.model_fields[name]
    if tuple in kinds_of(field.annotation) and error["type"] in _NOT_THE_LIST:
        inner = []
        message = _expected_list(name, field)
    elif error["type"] == "dict_type":
        message = f"must be entries, such as {name}.depths=[1,1,2,1]"
    elif error["type"] == "literal_error":
        message += _nearest(str(value), field)
    where = ".".join(map(str, [key, *inner]))
    message = message.split(", unable to parse")[0]
    meaning = str(field.description)
    if error["type"] == "missing" and len(error["loc"]) == 1:
        return f"{name} is not set; write {name}=VALUE ({meaning})"
    if "default" not in meaning and not field.is_required():
        meaning += f"; default {_default(field)}"
    return f"{where}={_typed(value)}: {message} ({meaning})"


def _expected_list(name: str, field: FieldInfo) -> str:
    """Return a message on the values of a setting that is a list, with an example."""
    example = field.get_default() or (field.examples or [None])[0]
    count = "two numbers" if len(example) == 2 else "numbers"
    return f"must be a list of {count}, such as {name}={_yaml(example).replace(' ', '')}"


def _nearest(value: str, field: FieldInfo) -> str:
    """Return a suggestion of the choice with the same beginning, or of the nearest; or ""."""
    choices = [choice for choice in choices_of(field.annotation) if isinstance(choice, str)]
    near = [choice for choice in choices if choice.startswith(value) or value.startswith(choice)]
    near = near if value and near else difflib.get_close_matches(value, choices, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _typed(value: Any) -> str:
    """Return a value as a user writes it."""
    try:
        return _yaml(value) if isinstance(value, bool | list | tuple | dict) else shown(value)
    except yaml.YAMLError:  # YAML cannot represent an object in the value
        return shown(value)


def _default(field: FieldInfo) -> str:
    """Return the default of a setting as a user writes it, "" if it has none."""
    return "" if field.is_required() else _yaml(field.get_default())


def _yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return (
        yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    )
