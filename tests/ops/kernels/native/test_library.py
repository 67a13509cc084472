"""How the C is compiled, where it is kept, and what happens where it cannot be had."""

from __future__ import annotations

import ctypes
import importlib.resources
import os
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from convattn import ops
from convattn.ops.kernels.native import library, sliding

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not any(map(shutil.which, library._COMPILERS)),
    reason="no C compiler",
)
# One that is done at once; it answers as the kernels do, and computes nothing.
SOURCE = "long sliding_room(void) { return 7; }\n"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is loaded, the cache is empty, and there is little to compile."""
    source = tmp_path / "source with spaces"
    source.mkdir()
    (source / "small.c").write_text(SOURCE)
    monkeypatch.setattr(library, "_FOLDER", source)
    monkeypatch.setattr(library, "_SOURCES", ("small.c",))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CONVATTN_NATIVE", raising=False)
    _forget()
    yield
    _forget()


def _forget() -> None:
    library._outcome.cache_clear()
    library._warned = False
    sliding._plan.cache_clear()


def _kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "convattn" / "kernels").glob("*"))


def _compiler() -> list[str]:
    found = library._compiler()
    assert found
    return found


def _works() -> bool:
    return library.available() and library.library().sliding_room() == 7


def _program(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def _attend(backend: str) -> torch.Tensor:
    x = torch.randn(1, 4, 20, 20)
    return ops.sliding_window_attention(x, x, x, num_heads=2, backend=backend)


def _is_done_without(message: str) -> None:
    """The first choice is silent, the kernels by name are not."""
    assert not library.available()
    _attend("auto")
    message = f"'native' cannot compute .*{message}.*`convattn doctor` .*use backend='auto'"
    with pytest.raises(ValueError, match=message):
        _attend("native")


def test_without_a_compiler_auto_is_silent(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _is_done_without(r"no C compiler \(gcc, cc, clang, or \$CC\) is on the path")


def test_a_variable_switches_the_kernels_off(monkeypatch):
    monkeypatch.setenv("CONVATTN_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _is_done_without("CONVATTN_NATIVE=0 is set")


def test_other_systems_do_without(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    _is_done_without("the kernels are for Linux, this is darwin")


def test_a_compiler_that_fails_is_reported_once(monkeypatch, tmp_path):
    lines = ('[ "$1" = --version ] && exit', "echo In file of >&2", "echo error: no >&2", "exit 1")
    monkeypatch.setenv("CC", str(_program(tmp_path / "broken", *lines)))
    with pytest.warns(
        RuntimeWarning, match="broken could not compile or load the kernels: error: no"
    ):
        assert not library.available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _is_done_without("broken could not compile")
    assert not _kept(tmp_path)  # nothing half done is left


def test_a_warning_that_is_an_error_costs_one_try(monkeypatch, tmp_path):
    tries = tmp_path / "tries"
    lines = (f"echo >> {shlex.quote(str(tries))}", "exit 1")
    monkeypatch.setenv("CC", str(_program(tmp_path / "broken", *lines)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="could not compile"):
            _attend("auto")
        once = tries.read_text()
        _attend("auto")
    assert tries.read_text() == once


@pytest.mark.parametrize("content", ["not a program", "#!/nowhere/at/all\n"])
def test_a_compiler_that_cannot_run_is_reported(monkeypatch, tmp_path, content):
    program = _program(tmp_path / "odd")
    program.write_text(content)
    monkeypatch.setenv("CC", str(program))
    with pytest.warns(RuntimeWarning, match="odd could not compile or load the kernels"):
        assert not library.available()


@needs_compiler
def test_the_status_names_the_compiler_and_the_build(tmp_path):
    found = library.status()
    assert found.reason == ""
    assert found.compiler == shlex.join(_compiler())
    assert found.version
    assert list(found.builds) == _kept(tmp_path)
    assert len(found.builds) == 1


@pytest.mark.filterwarnings("error")
def test_the_status_of_a_compiler_that_fails_is_no_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(_program(tmp_path / "broken", "exit 1")))
    found = library.status()
    assert "broken could not compile or load the kernels" in found.reason
    assert found.version == ""
    assert found.builds == ()


@needs_compiler
@pytest.mark.parametrize("name", ["plain", "with spaces"])
def test_cc_may_be_a_command_with_arguments(monkeypatch, tmp_path, name):
    log = tmp_path / "log"
    program = _program(tmp_path / name, f'echo "$@" >> {shlex.quote(str(log))}', 'exec "$@"')
    monkeypatch.setenv("CC", f"{shlex.quote(str(program))} {_compiler()[0]} -DNEW=1")
    assert _works()
    assert "-DNEW=1 -std=gnu11" in log.read_text()
    assert "-march=native" in log.read_text()


@needs_compiler
@pytest.mark.parametrize("flag", ["-march=x86-64-v2", "-mcpu=generic"])
def test_cc_may_name_the_processor(monkeypatch, tmp_path, flag):
    log = tmp_path / "log"
    program = _program(tmp_path / "logs", f'echo "$@" >> {shlex.quote(str(log))}', "exit 1")
    monkeypatch.setenv("CC", f"{shlex.quote(str(program))} {flag}")
    with pytest.warns(RuntimeWarning, match="could not compile"):
        assert not library.available()
    assert flag in log.read_text()
    assert "-march=native" not in log.read_text()


@needs_compiler
@pytest.mark.parametrize("named", ["", "   ", "/no/such/compiler -O2", "gcc '"])
def test_a_cc_that_names_nothing_is_passed_over(monkeypatch, named):
    monkeypatch.setenv("CC", named)
    assert _works()


@needs_compiler
def test_what_is_compiled_is_kept_for_the_user_alone(monkeypatch, tmp_path):
    assert _works()
    (kept,) = _kept(tmp_path)
    assert kept.name.startswith("kernels-")
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    _forget()
    monkeypatch.setattr(library, "_build_in", None)  # not called again
    assert _works()


@needs_compiler
def test_data_sets_beside_the_kernels_may_be_open_to_a_group(monkeypatch, tmp_path):
    folder = tmp_path / "cache" / "convattn"
    folder.mkdir(parents=True)
    folder.chmod(0o775)
    assert _works()
    (kept,) = _kept(tmp_path)
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o775


@needs_compiler
def test_another_source_compiler_or_flag_is_another_build(monkeypatch):
    keys = [library._key(["gcc"])]
    (library._FOLDER / "small.c").write_text(SOURCE.replace("7", "8"))
    keys.append(library._key(["gcc"]))
    keys.append(library._key(["gcc", "-O1"]))
    monkeypatch.setattr(library, "_FLAGS", (*library._FLAGS, "-g"))
    keys.append(library._key(["gcc"]))
    monkeypatch.setattr(library, "_processor", lambda: "another")
    keys.append(library._key(["gcc"]))
    assert len(set(keys)) == 5


@needs_compiler
@pytest.mark.parametrize("damage", ["emptied", "cut short", "changed"])
def test_a_damaged_build_is_made_again(tmp_path, damage):
    assert _works()
    (kept,) = _kept(tmp_path)
    whole = kept.read_bytes()
    # another file in its place: the one that is loaded must not change
    kept.unlink()
    half = len(whole) // 2
    damaged = {"emptied": b"", "cut short": whole[:half], "changed": whole[:-50] + bytes(50)}
    kept.write_bytes(damaged[damage])
    _forget()
    assert _works()
    assert kept.read_bytes() == whole


def _works_and_keeps_nothing(tmp_path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return _works() and not list((tmp_path / "temporary").iterdir())


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@needs_compiler
@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_nothing_is_loaded_from_where_others_may_write(tmp_path, mode):
    assert _works()
    (kept,) = _kept(tmp_path)
    kept.unlink()  # it is loaded: not changed, but replaced
    kept.write_bytes(b"somebody else's")
    kept.parent.chmod(mode)
    _forget()
    assert _works_and_keeps_nothing(tmp_path)
    assert kept.read_bytes() == b"somebody else's"


@needs_compiler
@pytest.mark.usefixtures("temporary")
def test_nothing_is_loaded_from_another_users_folder(monkeypatch, tmp_path):
    assert _works()
    _forget()
    (kept,) = _kept(tmp_path)
    kept.unlink()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert _works_and_keeps_nothing(tmp_path)
    assert not _kept(tmp_path)


def _read_only(*_: object, **__: object) -> None:
    raise OSError(30, "Read-only file system")


@needs_compiler
@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("what", ["read-only", "a file", "no home", "nothing is run there"])
def test_without_a_cache_each_process_compiles(monkeypatch, tmp_path, what):
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
    assert _works_and_keeps_nothing(tmp_path)


def test_nowhere_to_write_is_reported(monkeypatch):
    monkeypatch.setenv("CC", "true")
    monkeypatch.setattr(Path, "mkdir", _read_only)
    monkeypatch.setattr("tempfile.mkdtemp", _read_only)
    with pytest.warns(RuntimeWarning, match="could not compile or load the kernels: .*Read-only"):
        assert not library.available()


@pytest.mark.parametrize(("base", "folder"), [("", "home/.cache"), ("relative", "home/.cache")])
def test_a_cache_that_is_not_named_is_in_the_home(monkeypatch, tmp_path, base, folder):
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert library._cache() == tmp_path / folder / "convattn" / "kernels"


@needs_compiler
def test_threads_that_come_at_once_compile_once(monkeypatch):
    calls, build = [], library._build_in

    def count(folder: str, compiler: list[str]) -> Path:
        calls.append(folder)
        return build(folder, compiler)

    monkeypatch.setattr(library, "_build_in", count)
    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: barrier.wait() >= 0 and _works(), range(4)))
    assert len(calls) == 1


def test_a_forked_process_does_not_wait_for_a_thread_that_it_lacks():
    library._lock.acquire()
    before = library._lock
    child = os.fork()
    if not child:
        os._exit(0 if library._lock.acquire(timeout=5) else 1)
    before.release()
    assert os.waitpid(child, 0)[1] == 0


CODE = """
import sys, torch, warnings
warnings.simplefilter("error")
torch.set_num_threads(2)
from convattn import ops
x = torch.randn(2, 8, 20, 20)

def attend(x):
    return ops.sliding_window_attention(x, x, x, num_heads=2)

class Maps(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return attend(torch.full((1, 8, 20, 20), float(i)))

if __name__ == "__main__":
    how = sys.argv[1]
    if how == "at once":
        attend(x)
    elif how == "compiled":
        compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
        compiled(x.requires_grad_()).sum().backward()
    elif how == "inference":
        with torch.inference_mode():
            attend(x)
        attend(x.clone().requires_grad_()).sum().backward()
    else:
        attend(x)
        torch.randn(2000, 1000).relu().sum()
        loader = torch.utils.data.DataLoader(Maps(), num_workers=2, multiprocessing_context=how)
        assert [round(float(y.mean())) for y in loader] == [0, 1, 2, 3]
"""


@pytest.fixture
def started(tmp_path: Path) -> list[str]:
    """A program that starts with an empty cache, and without these tests' small source."""
    script = tmp_path / "script.py"
    script.write_text(CODE)
    return [sys.executable, str(script)]


def _run(command: list[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(ops.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": path}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stderr=pipe, text=True)


def _ends_well(process: subprocess.Popen[str]) -> None:
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("first", ["compiled", "inference", "fork", "spawn"])
def test_the_first_call_may_be_anywhere(started, first):
    _ends_well(_run([*started, first]))


@needs_compiler
@pytest.mark.slow
def test_processes_may_start_at_once(started, tmp_path):
    for process in [_run([*started, "at once"]) for _ in range(2)]:
        _ends_well(process)
    assert len(_kept(tmp_path)) == 1


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-O3", "-march=native"])
def test_the_source_has_no_warnings(monkeypatch, tmp_path, flag):
    monkeypatch.undo()
    flags = [f for f in library._FLAGS if f != "-w" and not f.startswith("-march")]
    sources = [str(library._FOLDER / name) for name in library._SOURCES if name.endswith(".c")]
    strict = [flag, "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]  # psabi: no vector is passed on
    command = [*_compiler(), *flags, *strict, *sources, "-o", str(tmp_path / "kernels.so")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_source_is_in_the_package(monkeypatch):
    monkeypatch.undo()
    files = importlib.resources.files("convattn.ops.kernels.native")
    there = {f.name for f in files.iterdir() if f.name.endswith((".c", ".h"))}
    assert there == set(library._SOURCES)
    for name in library._SOURCES:
        assert "#include" in (files / name).read_text()
