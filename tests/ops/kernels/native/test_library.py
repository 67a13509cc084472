"""Whether the kernels can be used: compiled, of the ABI that is called, and computing rightly."""

from __future__ import annotations

import importlib.resources
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from convattn import ops
from convattn.ops.kernels.native import compiler, library
from convattn.ops.kernels.native.library import SOURCE, Library
from tests.calls import Calls

needs_compiler = pytest.mark.skipif(
    sys.platform != "linux" or not any(map(shutil.which, compiler.COMPILERS)),
    reason="no C compiler",
)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Library:
    """The kernels of this package, not yet loaded; the cache is empty, and no variable is set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CONVATTN_NATIVE", raising=False)
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-O0"))  # compiles five times faster
    fresh = Library()
    monkeypatch.setattr(library, "installed", fresh)
    return fresh


def _builds(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "convattn" / "kernels").glob("*"))


def _program(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


def _attend(backend: str) -> torch.Tensor:
    x = torch.randn(1, 4, 20, 20)
    return ops.sliding_window_attention(x, x, x, num_heads=2, backend=backend)


def _are_unavailable(message: str) -> None:
    """ "auto" uses other paths; the path by its name says why it cannot run."""
    assert not library.available()
    _attend("auto")
    refusal = f"'native' cannot compute .*{message}.*`convattn doctor` .*use backend='auto'"
    with pytest.raises(ValueError, match=refusal):
        _attend("native")
    assert re.search(f"PyTorch's operators: .*{message}", library.describe())


@pytest.mark.usefixtures("fresh")
@pytest.mark.filterwarnings("error")
class TestWithoutKernels:
    def test_no_compiler(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        _are_unavailable(r"no C compiler \(gcc, cc, clang, or \$CC\) is found")

    def test_a_variable_switches_the_kernels_off(self, monkeypatch):
        monkeypatch.setenv("CONVATTN_NATIVE", "0")
        _are_unavailable("CONVATTN_NATIVE=0 is set")

    def test_other_systems(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "darwin")
        _are_unavailable("the kernels need Linux, this is darwin")

    def test_the_status_does_not_warn_of_a_compiler_that_fails(self, monkeypatch, tmp_path):
        monkeypatch.setenv("CC", str(_program(tmp_path / "broken", "exit 1")))
        found = library.status()
        assert "broken could not compile or load the kernels" in found.reason
        assert (found.version, found.builds) == ("", ())


@pytest.mark.usefixtures("fresh")
def test_a_compiler_that_fails_is_reported_once(monkeypatch, tmp_path):
    tries = tmp_path / "tries"
    lines = ['[ "$1" = --version ] && exit', f"echo >> {shlex.quote(str(tries))}"]
    lines += ("echo In file of >&2", "echo error: no >&2", "exit 1")
    monkeypatch.setenv("CC", str(_program(tmp_path / "broken", *lines)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match=r"broken could not compile .*: error: no"):
            _attend("auto")
        _are_unavailable("broken could not compile")
    assert tries.read_text() == "\n"  # one try
    assert not _builds(tmp_path)  # nothing unfinished is left


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("content", ["not a program", "#!/nowhere/at/all\n"])
def test_a_compiler_that_cannot_run_is_reported(monkeypatch, tmp_path, content):
    program = _program(tmp_path / "odd")
    program.write_text(content)
    monkeypatch.setenv("CC", str(program))
    with pytest.warns(RuntimeWarning, match="odd could not compile or load the kernels"):
        assert not library.available()


def test_a_folder_without_write_access_is_reported(monkeypatch, fresh):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setenv("CC", "true")
    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.warns(RuntimeWarning, match="could not compile or load the kernels: .*Read-only"):
        assert not fresh.available()


def _changed(tmp_path: Path, name: str, old: str, new: str) -> Library:
    """Return kernels one of whose files is changed."""
    folder = tmp_path / "changed"
    shutil.copytree(SOURCE.folder, folder)
    text = (folder / name).read_text()
    assert text.count(old) == 1
    (folder / name).write_text(text.replace(old, new))
    return Library(compiler.Source(folder, SOURCE.files))


def _is_refused(changed: Library, message: str) -> None:
    with pytest.warns(RuntimeWarning, match=f"{message}.*Slower operators of PyTorch"):
        assert not changed.available()
    with pytest.raises(library.NotAvailableError, match=message):
        changed.kernels()
    assert message in changed.status().reason
    assert message in changed.describe()


ONE_VECTOR = "x < LANES; x += LANES)\n            score("
SLIDING, GRADIENTS = "sliding_window_native", "sliding_window_native_backward"
# A file, a change of it, and the operator that then computes wrongly.
WRONG = [
    ("rows.c", "load(kept + i) * factor", "1 + load(kept + i) * factor", "layer_norm"),
    ("rows.c", "length <= min_norm", "length > min_norm", "directions"),
    ("rows.c", "1 / sum_of(sum)", "1 / sum_of(sum) + 1", "similarities_"),
    ("rows.c", "* scales[row]", "+ scales[row]", "scale_rows_"),
    ("heads.c", "if (mask) logit += ", "if (mask) logit -= ", "attend_windows"),
    ("sliding.c", "x = (x % period + period) % period;", "x = 0;", SLIDING),
    ("sliding.c", "b.top = band * task->band", "b.top = 0", SLIDING),
    ("products.h", "- total);", "+ total);", GRADIENTS),
]
# Most of these are right for one image, one vector, one chunk or band, no stride and no dilation.
WRONG_FOR_SOME_SIZES = [
    ("rows.c", "chunk < (rows + CHUNK - 1) / CHUNK;", "chunk < 1;", "layer_norm"),
    ("rows.c", "EACH(i, width) write(total", "EACH(i, LANES) write(total", "add_layer_norm"),
    ("rows.c", "image * step + p", "image * pixels + p", "similarities_"),
    ("rows.c", "task % chunks * CHUNK", "0", "similarities_"),
    ("rows.c", "task * padded + m", "m", "similarities_"),
    ("rows.c", "* scales[row]", "* scales[0]", "scale_rows_"),
    ("heads.c", "image = i / t->heads / windows", "image = 0", "attend_windows"),
    ("heads.c", "row = window / t->across * t->rows", "row = 0", "attend_windows"),
    ("heads.c", "parts->queries + first", "parts->queries", "attend_windows"),
    ("heads.c", "PART(KEYS) PART(1)", "PART(KEYS)", "attend_windows"),
    ("sliding.c", "task->dilation * x;\n        p.", "x;\n        p.", SLIDING),
    ("sliding.c", "column % task->stride * p.phase + column / task->stride", "column", SLIDING),
    ("sliding.c", "int64_t image = i / task->heads", "int64_t image = 0", SLIDING),
    ("sliding.c", "x < p->lanes; x += LANES)\n            score(", ONE_VECTOR, SLIDING),
    ("sliding.c", "row / step + 1 < rows ? row / step", "row + 1 < rows ? row", SLIDING),
    ("sliding.c", "phase < p->phases;", "phase < 1;", GRADIENTS),
    ("sliding.c", "if (row % task->dilation) continue;", "", GRADIENTS),
    ("products.h", "PART(CHANNELS) PART(4) PART(1)", "PART(CHANNELS) PART(4)", SLIDING),
]


@needs_compiler
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("name", "old", "new", "kernel"),
    [*WRONG, *(pytest.param(*x, marks=pytest.mark.slow) for x in WRONG_FOR_SOME_SIZES)],
)
def test_a_kernel_that_computes_wrongly_makes_all_unavailable(tmp_path, name, old, new, kernel):
    message = f"the compiled kernel '{kernel}' computes wrongly in float32"
    _is_refused(_changed(tmp_path, name, old, new), message)


@needs_compiler
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("vectors.h", "#define ABI_VERSION 1", "#define ABI_VERSION 77", "have ABI (77, "),
        ("heads.c", "int64_t threads;", "int64_t threads, more;", "have ABI (1, "),
        ("rows.c", "rows_scale(", "rows_multiply(", "have no function 'rows_scale'"),
    ],
)
def test_kernels_of_another_abi_are_refused(tmp_path, name, old, new, message):
    changed = _changed(tmp_path, name, old, new)
    with pytest.warns(RuntimeWarning, match="the compiled kernels"):
        assert not changed.available()
    assert f"the compiled kernels {message}" in changed.status().reason


@needs_compiler
@pytest.mark.parametrize("mode", [FakeTensorMode, Calls, lambda: FlopCounterMode(display=False)])
def test_the_check_is_independent_of_modes(mode):
    with mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert Library().available()


@needs_compiler
def test_threads_that_call_at_once_compile_once(monkeypatch, tmp_path, fresh):
    tries = tmp_path / "tries"
    lines = (f'[ "$1" = --version ] || echo >> {shlex.quote(str(tries))}', 'exec gcc "$@"')
    monkeypatch.setenv("CC", str(_program(tmp_path / "counted", *lines)))
    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: barrier.wait() >= 0 and fresh.available(), range(4)))
    assert tries.read_text() == "\n"
    found = fresh.status()
    assert (found.reason, list(found.builds)) == ("", _builds(tmp_path))
    assert found.compiler.endswith("counted")
    assert found.version
    assert found.builds[0].stem in fresh.describe()


def test_a_forked_process_does_not_wait_for_a_thread_that_compiles(monkeypatch, tmp_path, fresh):
    monkeypatch.setenv("CC", str(_program(tmp_path / "slow", "sleep 2", "exit 1")))
    thread = threading.Thread(target=fresh.status)
    thread.start()
    time.sleep(0.5)  # it now waits for the compiler
    child = os.fork()
    if not child:
        os.environ["CONVATTN_NATIVE"] = "0"
        os._exit(0 if Library().status().reason else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert thread.is_alive()
    thread.join()


CODE = """
import os, signal, sys, threading, torch, warnings
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
    elif how == "forked":
        expected = attend(x)
        child = os.fork()
        if not child:
            os._exit(not torch.equal(attend(x), expected))
        threading.Timer(20, os.kill, (child, signal.SIGKILL)).start()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
    else:
        attend(x)
        torch.randn(2000, 1000).relu().sum()
        loader = torch.utils.data.DataLoader(Maps(), num_workers=2, multiprocessing_context=how)
        assert [round(float(y.mean())) for y in loader] == [0, 1, 2, 3]
"""


@pytest.fixture
def started(fresh: Library, tmp_path: Path) -> list[str]:
    """A program that starts with an empty cache."""
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
@pytest.mark.parametrize("first", ["compiled", "inference", "forked", "fork", "spawn"])
def test_the_first_call_may_be_anywhere(started, first):
    _ends_well(_run([*started, first]))


@needs_compiler
@pytest.mark.slow
def test_processes_may_start_at_once(started, tmp_path):
    for process in [_run([*started, "at once"]) for _ in range(2)]:
        _ends_well(process)
    assert len(_builds(tmp_path)) == 1


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("flag", ["-O3", "-march=native"])
def test_the_source_has_no_warnings(tmp_path, flag):
    flags = [f for f in compiler.FLAGS if f != "-w" and not f.startswith("-march")]
    files = [str(SOURCE.folder / name) for name in SOURCE.files if name.endswith(".c")]
    strict = [flag, "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]  # psabi: no vector is passed on
    found = compiler.find()
    assert found
    command = [*found, *flags, *strict, *files, "-o", str(tmp_path / "kernels.so")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_source_is_in_the_package():
    files = importlib.resources.files("convattn.ops.kernels.native")
    there = {f.name for f in files.iterdir() if f.name.endswith((".c", ".h"))}
    assert there == set(SOURCE.files)
