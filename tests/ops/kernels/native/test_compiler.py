"""How C files are compiled, and where builds are kept."""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from convattn.ops.kernels.native import compiler

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not any(map(shutil.which, compiler.COMPILERS)),
    reason="no C compiler",
)
CODE = "long seven(void) { return 7; }\n"


@pytest.fixture(autouse=True)
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> compiler.Source:
    """A file that is compiled at once; the cache is empty, and no variable is set."""
    folder = tmp_path / "source with spaces"
    folder.mkdir()
    (folder / "small.c").write_text(CODE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return compiler.Source(folder, ("small.c",))


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def _load(source: compiler.Source) -> tuple[int, str]:
    """Return the number that the compiled function returns, and the name of the build."""
    command = compiler.find()
    assert command
    library, build = compiler.load(source, command)
    return library.seven(), build


def _builds(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "convattn" / "kernels").glob("*"))


def _program(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", ["plain", "with spaces"])
@pytest.mark.parametrize("flag", ["-DNEW=1", "-march=x86-64-v2"])
def test_cc_may_be_a_command_with_arguments(monkeypatch, tmp_path, source, name, flag):
    found, log = compiler.find(), tmp_path / "log"
    assert found
    program = _program(tmp_path / name, f'echo "$@" >> {shlex.quote(str(log))}', 'exec "$@"')
    monkeypatch.setenv("CC", f"{shlex.quote(str(program))} {found[0]} {flag}")
    assert _load(source)[0] == 7
    assert f"{flag} -std=gnu11" in log.read_text()
    assert ("-march=native" in log.read_text()) == (flag == "-DNEW=1")


@pytest.mark.parametrize("named", ["", "   ", "/no/such/compiler -O2", "gcc '"])
def test_a_cc_that_names_no_program_is_ignored(monkeypatch, source, named):
    monkeypatch.setenv("CC", named)
    assert _load(source)[0] == 7


def test_a_build_is_kept_for_the_user_alone_and_used_again(monkeypatch, tmp_path, source):
    value, build = _load(source)
    (kept,) = _builds(tmp_path)
    assert (value, build) == (7, kept.stem)
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    before = kept.stat()
    assert _load(source) == (7, build)
    assert kept.stat() == before


def test_data_sets_beside_the_builds_may_be_open_to_a_group(tmp_path, source):
    folder = tmp_path / "cache" / "convattn"
    folder.mkdir(parents=True)
    folder.chmod(0o775)
    assert _load(source)[0] == 7
    (kept,) = _builds(tmp_path)
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o775


def test_another_source_or_command_is_another_build(monkeypatch, source):
    builds = [_load(source)[1]]
    monkeypatch.setenv("CC", "gcc -DNEW=1")
    builds.append(_load(source)[1])
    (source.folder / "small.c").write_text(CODE.replace("7", "8"))
    value, build = _load(source)
    assert value == 8
    assert len({*builds, build}) == 3


@pytest.mark.parametrize("damage", ["emptied", "cut short", "changed"])
def test_a_damaged_build_is_made_again(tmp_path, source, damage):
    _load(source)
    (kept,) = _builds(tmp_path)
    whole = kept.read_bytes()
    kept.unlink()  # another file in its place: the one that is loaded must not change
    half = len(whole) // 2
    damaged = {"emptied": b"", "cut short": whole[:half], "changed": whole[:-50] + bytes(50)}
    kept.write_bytes(damaged[damage])
    assert _load(source)[0] == 7
    assert kept.read_bytes() == whole


def _loads_and_keeps_nothing(source: compiler.Source, temporary: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return _load(source)[0] == 7 and not list(temporary.iterdir())


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_nothing_is_loaded_from_where_others_may_write(tmp_path, temporary, source, mode):
    _load(source)
    (kept,) = _builds(tmp_path)
    kept.unlink()  # it is loaded: replaced, not changed
    kept.write_bytes(b"somebody else's")
    kept.parent.chmod(mode)
    assert _loads_and_keeps_nothing(source, temporary)
    assert kept.read_bytes() == b"somebody else's"


def test_nothing_is_loaded_from_another_users_folder(monkeypatch, tmp_path, temporary, source):
    _load(source)
    (kept,) = _builds(tmp_path)
    kept.unlink()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert _loads_and_keeps_nothing(source, temporary)
    assert not _builds(tmp_path)


def _read_only(*_: object, **__: object) -> None:
    raise OSError(30, "Read-only file system")


@pytest.mark.parametrize("what", ["read-only", "a file", "no home", "nothing is run there"])
def test_without_a_cache_each_process_compiles(monkeypatch, tmp_path, temporary, source, what):
    if what == "read-only":
        monkeypatch.setattr(Path, "mkdir", _read_only)
    elif what == "a file":
        (tmp_path / "cache").write_text("")
    elif what == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    else:
        load = ctypes.CDLL
        monkeypatch.setattr(ctypes, "CDLL", lambda f: _read_only() if "kernels-" in f else load(f))
    assert _loads_and_keeps_nothing(source, temporary)


@pytest.mark.parametrize("base", ["", "relative"])
def test_a_cache_that_is_not_named_is_in_the_home(monkeypatch, tmp_path, base):
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compiler.cache_folder() == tmp_path / "home" / ".cache" / "convattn" / "kernels"


@pytest.mark.parametrize(("patience", "shown"), [(0.05, True), (60, False)])
def test_a_slow_compiler_is_announced(monkeypatch, tmp_path, source, caplog, patience, shown):
    monkeypatch.setattr(compiler, "PATIENCE", patience)
    slow = _program(tmp_path / "slow", "sleep 0.3", 'exec gcc "$@"')
    monkeypatch.setenv("CC", str(slow))
    with caplog.at_level(logging.INFO, "convattn"):
        _load(source)
    assert [r.levelno for r in caplog.records] == [logging.INFO] + [logging.WARNING] * shown
    assert all("compiling the C kernels" in r.message for r in caplog.records)


@pytest.mark.parametrize("limit", ["TIMEOUT", "VERSION_TIMEOUT"])
def test_a_compiler_that_takes_too_long_is_stopped(monkeypatch, tmp_path, source, limit):
    monkeypatch.setattr(compiler, limit, 0.2)
    lines = () if limit == "VERSION_TIMEOUT" else ('[ "$1" = --version ] && exit',)
    monkeypatch.setenv("CC", str(_program(tmp_path / "slow", *lines, "exec sleep 20")))
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        _load(source)
    assert compiler.reason(raised.value) == "it took more than 0 s"
