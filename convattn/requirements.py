"""What this package and its extras ask for, and what of it is installed.

The package's own metadata says so; where it is not installed as a package, nothing is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from convattn.machine import package_version

_PACKAGE = "convattn"
_SUMS = ("dev", "all")  # extras that repeat the others
_MODULES = {"sklearn": "scikit-learn"}  # which are not called as their packages


class Need(NamedTuple):
    """A package that this one asks for."""

    package: str
    versions: str  # such as ">=2.9"
    extra: str  # "" where every user needs it
    installed: str | None

    @property
    def is_met(self) -> bool:
        """Whether an installed version is one of those asked for."""
        specifier = Requirement(f"{self.package}{self.versions}").specifier
        return self.installed is not None and specifier.contains(self.installed, prereleases=True)

    def __str__(self) -> str:
        return f"{self.package}{self.versions}"


def needs() -> list[Need]:
    """Return what this package asks for, then what each of its extras asks for."""
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
