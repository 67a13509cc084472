"""Results as a JSON file: the machine, the settings and every sample."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from convattn.bench.machine import (
    describe_environment,
    describe_machine,
    describe_versions,
    same_machine,
)

SCHEMA = 1
_COMPUTES = ("torch", "timm", "triton", "c_kernels")  # one file has results of one version each


def new_document(
    script: str, *, command: str, device: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return a result without groups.

    Args:
        script: the script that measures: ``ops``, ``backbones``, ..., or ``bench``.
        command: the command that measures the results again.
        device: the device that is measured.
        settings: the settings of all groups, in addition to the number of threads.
    """
    return {
        "schema": SCHEMA,
        "script": script,
        "command": command,
        "machine": describe_machine(device),
        "versions": describe_versions(),
        "environment": describe_environment(),
        "settings": {
            "threads": torch.get_num_threads(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            **settings,
        },
        "groups": [],
    }


class Record:
    """A file of results, written after every group: an interruption keeps the finished groups.

    A group replaces an earlier group of the same name; other groups of the file stay.

    Args:
        path: the file.
        document: the value of `new_document`.
        force: replace all results of the file.

    Raises:
        ValueError: the file has results of another machine, script, number of threads, version of
            PyTorch or timm, or environment, or it is not a file of results.
    """

    def __init__(self, path: Path, document: dict[str, Any], *, force: bool = False) -> None:
        self.path, self.document = path, document
        if not path.exists() or force:
            return
        before = read_document(path)
        if before["script"] != document["script"]:
            raise ValueError(f"{path} has results of {before['script']!r}; choose another --output")
        if not same_machine(before["machine"], document["machine"]):
            raise ValueError(
                f"{path} has results of another machine ({_name(before['machine'])}; this is "
                f"{_name(document['machine'])}): give this one a --name, or replace it by --force"
            )
        threads = [found["settings"]["threads"] for found in (before, document)]
        if threads[0] != threads[1]:
            raise ValueError(
                f"{path} has results of {threads[0]} threads, this run has {threads[1]}: set "
                f"--threads {threads[0]}, or choose another --output, or replace it by --force"
            )
        ours, theirs = _conditions(document), _conditions(before)
        changed = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
        if changed:
            words = [f"{name} {theirs.get(name)}, here {ours.get(name)}" for name in changed]
            raise ValueError(
                f"{path} has results of {'; '.join(words)}: choose another --output, or replace it "
                "by --force"
            )
        self.document["groups"] = before["groups"]

    def add(self, group: dict[str, Any]) -> None:
        """Add a group and write the file."""
        groups = self.document["groups"]
        names = [other["name"] for other in groups]
        if group["name"] in names:
            groups[names.index(group["name"])] = group
        else:
            groups.append(group)
        self.save()

    def keep(self, names: list[str]) -> None:
        """Remove groups whose names are not in ``names``, and sort the others in that order."""
        found = {group["name"]: group for group in self.document["groups"]}
        self.document["groups"] = [found[name] for name in names if name in found]
        self.save()

    def save(self) -> None:
        """Write the file in one step, so that a reader never reads an incomplete file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(to_json(self.document), encoding="utf-8")
        os.replace(part, self.path)


def read_document(path: Path) -> dict[str, Any]:
    """Read a file of results.

    Raises:
        ValueError: the file has no results, or its format has another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path} has no results of a benchmark in format version {SCHEMA}")
    return document


def to_json(document: dict[str, Any]) -> str:
    """Return a document as indented JSON, with each list of numbers or words on one line."""
    text = json.dumps(_rounded(document), indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def _rounded(value: Any) -> Any:
    """Round floating-point numbers to seven digits."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return value


def _conditions(document: dict[str, Any]) -> dict[str, Any]:
    versions = {name: document["versions"].get(name) for name in _COMPUTES}
    return {**versions, **document["environment"]}


def _name(machine: dict[str, Any]) -> str:
    return f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores"
