"""The options of a task with which a trained model is evaluated or used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from convattn.checks import check_choice
from convattn.training.task import Task

_NO_OPTIONS = ("model", "images", "sizes", "card")  # other arguments of these methods


def evaluate_options(task: type[Task[Any]]) -> list[str]:
    """Return the names of the options of an evaluation: those that ``outputs`` has."""
    return _named(task.outputs)


def predict_options(task: type[Task[Any]]) -> list[str]:
    """Return the names of the options of a prediction: those of ``predict`` and ``outputs``."""
    return list(dict.fromkeys([*_named(task.outputs), *_named(task.predict)]))


def check_options(task: type[Task[Any]], given: Iterable[str], known: Collection[str]) -> None:
    """Raise `ValueError` for an option that is not known."""
    for name in given:
        check_choice(f"option of {task.name}", name, known)


def option_notes(given: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the options with which a model is evaluated, if there are any."""
    words = [f"{k}={str(v).lower()}" for k, v in given.items() if v is not None]
    text = f"evaluated with {', '.join(words)}, in place of the training's settings"
    return [text] if words else []


def _named(method: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(method).parameters.values()
    return [p.name for p in parameters if p.name not in _NO_OPTIONS and p.kind is not p.VAR_KEYWORD]
