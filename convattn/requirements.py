"""The requirements of this package and of its extras, and the versions that are installed.

They are read from the metadata of the installed package; without metadata there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from convattn.machine import package_version

_PACKAGE = "convattn"
_SUMS = ("dev", "all")  # extras that repeat other extras
_MODULES = {
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
}  # modules whose package has another name


class Need(NamedTuple):
    """A requirement of this package."""

    package: str
    versions: str  # such as ">=2.9"
    extra: str  # "" if the package always needs it
    installed: str | None

    @property
    def is_met(self) -> bool:
        """Whether the installed version satisfies the requirement."""
        specifier = Requirement(f"{self.package}{self.versions}").specifier
        return self.installed is not None and specifier.contains(self.installed, prereleases=True)

    def __str__(self) -> str:
        return f"{self.package}{self.versions}"


def needs() -> list[Need]:
    """Return the requirements of this package, then those of each of its extras."""
    found = []
    for extra in ("", *_extras()):
        for requirement in _requirements():
            marker = requirement.marker
            asked = marker.evaluate({"extra": extra}) if marker else not extra
            if asked and requirement.name != _PACKAGE:
                installed = package_version(requirement.name)
                versions = str(requirement.specifier)
                found.append(Need(requirement.name, versions, extra, installed))
    return found


def extras_of(module: str) -> list[str]:
    """Return the extras that install a module."""
    package = canonicalize_name(_MODULES.get(module, module))
    return [n.extra for n in needs() if n.extra and canonicalize_name(n.package) == package]


def _extras() -> list[str]:
    return [extra for extra in _fields("Provides-Extra") if extra not in _SUMS]


def _requirements() -> Iterator[Requirement]:
    return map(Requirement, _fields("Requires-Dist"))


def _fields(name: str) -> list[str]:
    try:
        return metadata(_PACKAGE).get_all(name) or []
    except PackageNotFoundError:
        return []
