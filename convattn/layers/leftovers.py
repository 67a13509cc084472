"""Format the names of layers that were not changed, grouped by reason."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = 8  # names in a line


def reason_lines(verb: str, left: Mapping[str, str], parts: str = "") -> list[str]:
    """Return one line for each reason.

    Args:
        verb: the first word of each line: "left" or "skipped".
        left: names of layers, each with the reason.
        parts: the first words of the reason for layers inside operators; they share one line.
    """
    groups: dict[str, list[str]] = {}
    for name, reason in left.items():
        key = "parts of operators" if parts and reason.startswith(parts) else reason
        groups.setdefault(key, []).append(name)
    return [
        f"  {names[0]}: {verb}, {left[names[0]]}"
        if len(names) == 1
        else f"  {verb} {len(names)}, {reason}: {first_of(names)}"
        for reason, names in groups.items()
    ]


def first_of(names: list[str]) -> str:
    """Return the first names of a list and the number of the other names."""
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f"{', '.join(names[:_NAMES])}{more}"
