from __future__ import annotations

from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import Field

from convattn.training.kinds import kinds_of


@pytest.mark.parametrize(
    ("annotation", "kinds"),
    [
        (int, {int}),
        (str | None, {str, type(None)}),
        (Optional[str], {str, type(None)}),  # noqa: UP045
        (Annotated[int, Field(ge=0)] | None, {int, type(None)}),
        (Literal["a", 1], {str, int}),
        (dict[str, Any], {dict}),
        (tuple[str, ...], {tuple}),
    ],
)
def test_the_types_that_an_annotation_accepts(annotation: Any, kinds: set[type]) -> None:
    assert kinds_of(annotation) == kinds
