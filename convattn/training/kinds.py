"""Types of the values that a setting accepts."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin


def kinds_of(annotation: Any) -> set[type]:
    """Return the types that an annotation accepts: ``str | None`` gives ``{str, NoneType}``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return {kind for argument in arguments for kind in kinds_of(argument)}
    if origin is Annotated:
        return kinds_of(arguments[0])
    if origin is Literal:
        return {type(value) for value in arguments}
    return {origin or annotation}


def choices_of(annotation: Any) -> list[Any]:
    """Return the values that an annotation lists: ``Literal["a"] | None`` gives ``["a"]``."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [choice for argument in get_args(annotation) for choice in choices_of(argument)]
