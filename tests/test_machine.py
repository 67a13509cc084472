from __future__ import annotations

import inspect
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convattn import machine
from convattn.bench.machine import describe_commit, describe_machine
from convattn.runs.environment import environment


def _program(folder: Path, name: str, *lines: str) -> None:
    path = folder / name
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


@pytest.fixture
def _unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)


def _without_a_commit() -> bool:
    describe_commit.cache_clear()
    try:
        return describe_commit() is None and environment()["git_commit"] is None
    finally:
        describe_commit.cache_clear()


FACTS: dict[str, Callable[[], Any]] = {
    "package_version": lambda: machine.package_version("torch"),
    "git_commit": machine.git_commit,
    "differs_from_commit": machine.differs_from_commit,
    "processor_name": machine.processor_name,
    "processor_flags": machine.processor_flags,
    "usable_cores": machine.usable_cores,
    "core_quota": machine.core_quota,
    "memory": machine.memory,
    "memory_limit": machine.memory_limit,
    "shared_memory": machine.shared_memory,
    "environment_variables": lambda: machine.environment_variables("PATH$"),
}


def test_every_public_function_of_the_module_is_tested():
    public = inspect.getmembers(machine, inspect.isfunction)
    assert set(FACTS) == {n for n, f in public if f.__module__ == machine.__name__ and n[0] != "_"}


@pytest.mark.parametrize("fact", FACTS)
def test_a_fact_whose_source_is_forbidden_is_empty_and_no_error(fact):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    sources = {
        Path: ("read_text", "exists"),
        subprocess: ("run",),
        shutil: ("disk_usage",),
        os: ("sysconf", "sched_getaffinity", "environ"),
        platform: ("processor", "machine"),
        machine: ("version",),
    }
    with pytest.MonkeyPatch.context() as patch:
        for owner, names in sources.items():
            for name in names:
                patch.setattr(owner, name, refuse, raising=False)
        found = FACTS[fact]()
    assert not found


@pytest.mark.parametrize("fact", ["usable_cores", "memory"])
def test_a_fact_that_the_system_does_not_have_is_none(monkeypatch, fact):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert FACTS[fact]() is None


def test_control_groups_of_an_unknown_form_are_no_limits(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "no colons at all\n")
    assert machine.core_quota() is None
    assert machine.memory_limit() is None


def test_git_output_that_is_not_utf8_is_no_error(monkeypatch, tmp_path):
    _program(tmp_path, "git", r"printf '\351'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert machine.differs_from_commit()
    assert machine.git_commit() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_commit_is_this_checkout_and_not_the_one_that_git_works_on(monkeypatch, tmp_path):
    commit = machine.git_commit()
    subprocess.run(["git", "init", "-q", tmp_path / "other"], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert machine.git_commit() == commit


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _without_a_commit()


@pytest.mark.parametrize("lines", [["exit 128"], ["echo"]])
def test_a_git_that_fails_gives_no_commit(monkeypatch, tmp_path, lines):
    _program(tmp_path, "git", *lines)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _without_a_commit()


def test_a_git_that_may_not_run_gives_no_commit(monkeypatch, tmp_path):
    (tmp_path / "git").write_text("not a program")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _without_a_commit()


@pytest.mark.usefixtures("_unreadable")
def test_a_processor_without_a_description_by_linux_has_a_name():
    assert machine.processor_name()
    assert machine.processor_flags() == []
    assert describe_machine()["cpu"] == environment()["processor"] == machine.processor_name()
    assert machine.core_quota() is None
    assert machine.memory_limit() is None


# A control group and its parent, each with the files of a version; the smaller limit counts.
GROUPS: dict[str, dict[str, str]] = {
    "0::/slice/box": {
        "slice/cpu.max": "150000 100000",
        "slice/box/cpu.max": "300000 100000",
        "slice/memory.max": "max",
        "slice/box/memory.max": "1073741824",
    },
    "4:memory:/box\n2:cpu,cpuacct:/box\n0::/": {
        "cpu/box/cpu.cfs_quota_us": "150000",
        "cpu/box/cpu.cfs_period_us": "100000",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/box/memory.limit_in_bytes": "1073741824",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    },
}


@pytest.mark.parametrize("groups", GROUPS)
def test_the_limits_of_a_container_are_those_of_its_control_groups(monkeypatch, tmp_path, groups):
    for name, text in GROUPS[groups].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    read = Path.read_text

    def here(self: Path, *args: str, **options: str) -> str:
        return groups if str(self) == "/proc/self/cgroup" else read(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", here)
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    assert machine.core_quota() == 1.5
    assert machine.memory_limit() == 2**30
