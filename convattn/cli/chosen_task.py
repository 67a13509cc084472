"""The task of ``convattn train``, by its options, words and recipe."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from convattn.names import check_choice, listed, shown
from convattn.tasks import table

_DEFAULT = "classification"


def chosen_task(args: argparse.Namespace) -> str:
    """Return the name of the task.

    It is that of --task or of --method, or else that of the recipe, or else classification.

    Args:
        args: the options; ``settings`` may hold ``task=NAME`` and ``method=NAME`` in place of them.

    Raises:
        ValueError: an unknown task or method (the message suggests the nearest), or a method of
            another task.
    """
    task = args.task or _word(args, "task")
    method = chosen_method(args)
    if task is not None:
        check_choice("task", task, table.list_tasks())
    if method is None:
        return task or _of_recipe(args.recipe) or _DEFAULT
    if task is None:
        return table.task_of_method(method)
    _check_method(task, method)
    return task


def chosen_method(args: argparse.Namespace) -> str | None:
    """Return the name of the method, None if none is given."""
    return args.method or _word(args, "method")


def _check_method(task: str, method: str) -> None:
    own = table.methods_of(task)
    if method in own:
        return
    others = [name for name in table.list_tasks() if method in table.methods_of(name)]
    if others:
        raise ValueError(
            f"{method} is a method of {others[0]}, not of {task}: leave --task out, or write "
            f"--task {others[0]}"
        )
    if not own:
        raise ValueError(f"{task} has no methods: leave --method {shown(method)} out")
    check_choice(f"method of {task}", method, own)


def _word(args: argparse.Namespace, key: str) -> str | None:
    """Return the value of a setting among the KEY=VALUE words, None if it is not there."""
    values = [word.partition("=")[2] for word in args.settings if word.startswith(f"{key}=")]
    return values[-1] if values else None


def _of_recipe(recipe: str | None) -> str | None:
    """Return the task of a recipe; None if it does not say so.

    Raises:
        ValueError: several tasks have a recipe of this name.
    """
    if recipe is None:
        return None
    if recipe.endswith((".yaml", ".yml")):
        return _in_file(Path(recipe).expanduser())
    tasks = [task for task in table.list_tasks() if recipe in table.list_recipes(task)]
    if len(tasks) > 1:
        raise ValueError(
            f"{listed(tasks)} have a recipe {recipe!r}: add --task {' or --task '.join(tasks)}"
        )
    return tasks[0] if tasks else None


def _in_file(path: Path) -> str | None:
    """Return the task that a recipe file names; the rest of the file is checked later."""
    keys = dict(_lines(path))
    if "task" in keys:
        check_choice(f"task in {shown(path)}:", keys["task"], table.list_tasks())
        return keys["task"]
    return table.task_of_method(keys["method"]) if "method" in keys else None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the keys and values of the plain lines of a file, none if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and not key.startswith((" ", "#")):
            yield key, value.split("#")[0].strip().strip("'\"")
