"""Results as a JSON file: what they were measured on, how, and every sample."""

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
_COMPUTES = ("torch", "timm", "triton", "c_kernels")  # the versions that results of one file share


def new_document(
    script: str, *, command: str, device: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Return a result without groups.

    Args:
        script: what measured it: ``ops``, ``backbones``, ..., or ``bench``.
        command: how to measure it again.
        device: where.
        settings: what held for all groups, the number of threads too.
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
    """A file of results that grows group by group: what was measured survives an interruption.

    A group that is measured again replaces the one of its name; the others stay.

    Args:
        path: the file.
        document: as `new_document` makes it.
        force: begin anew over results of another machine.

    Raises:
        ValueError: the file has results of another machine, script, number of threads, version of
            PyTorch or timm, or environment, or none.
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
        """Drop groups that are measured no more, and put the others in order."""
        found = {group["name"]: group for group in self.document["groups"]}
        self.document["groups"] = [found[name] for name in names if name in found]
        self.save()

    def save(self) -> None:
        """Write the file; a reader never sees half of it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text(to_json(self.document), encoding="utf-8")
        os.replace(part, self.path)


def read_document(path: Path) -> dict[str, Any]:
    """Read a file of results.

    Raises:
        ValueError: it is none, or of another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"{path} has no benchmark's results of version {SCHEMA}")
    return document


def to_json(document: dict[str, Any]) -> str:
    """Return the text of a file: indented, but a list of numbers or words on one line."""
    text = json.dumps(_rounded(document), indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def _rounded(value: Any) -> Any:
    """Round times to seven digits: what follows is noise."""
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
