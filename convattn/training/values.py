"""Values of settings in YAML; the value of a text setting remains a text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from convattn.training.kinds import kinds_of

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
)
_REPLACED = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")}


class _Loader(yaml.SafeLoader):
    """YAML with Python's numbers: 1e-3 is a float; 010, 12:30 and 2026-11-29 are texts."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_text(text: str, field: FieldInfo | None = None) -> Any:
    """Return the value of a setting that was typed as ``text``.

    Args:
        text: as typed. The value of a setting that accepts texts is the text without surrounding
            quotes; ``null`` is None where the setting accepts None, and "[a, b]" is a list where
            the setting accepts a list.
        field: the setting; None for YAML of any type.

    Raises:
        yaml.YAMLError: the text is not YAML, and the setting does not accept texts.
    """
    if field is None or str not in (kinds := kinds_of(field.annotation)):
        return yaml.load(text, _Loader)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    if type(None) in kinds and text in ("", "~", "null", "Null", "NULL"):
        return None
    if tuple in kinds and text.startswith("["):
        return yaml.load(text, _Loader)
    return int(text) if int in kinds and _INTEGER.match(text) else text


def parse_document(text: str, fields: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """Return the settings of a YAML document.

    Args:
        text: lines of ``key: value``.
        fields: the settings by name.

    Raises:
        yaml.YAMLError: the text is not YAML.
        ValueError: the document has other content, or sets a setting twice.
    """
    loader = _Loader(text)
    try:
        document = loader.get_single_node()
        if not isinstance(document, yaml.MappingNode):
            raise ValueError("must consist of lines `key: value`, such as `epochs: 10`")
        values: dict[str, Any] = {}
        for key_node, node in document.value:
            key = str(key_node.value)
            if key in values:
                raise ValueError(f"sets {key!r} twice; leave one out")
            values[key] = _construct(loader, node, fields.get(key))
        return values
    finally:
        loader.dispose()


def _construct(loader: _Loader, node: yaml.Node, field: FieldInfo | None) -> Any:
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if is_plain and field is not None and str in kinds_of(field.annotation):
        return parse_text(node.value, field)
    return loader.construct_object(node, deep=True)
