from __future__ import annotations

from pathlib import Path

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
def test_a_processor_that_linux_does_not_describe_has_a_name_all_the_same():
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
