from __future__ import annotations

import runpy
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.cli.command import HOME, environment

# The module, and what the installed script does.
STARTS = {
    "module": ["-m", "convattn"],
    "script": [
        "-c",
        "import sys; sys.argv[0] = 'bin/convattn'; from convattn.__main__ import main; "
        "sys.exit(main())",
    ],
}


def start(how: str, *words: str, before: Callable[[], object]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "importtime", *STARTS[how], *words],
        cwd=HOME,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=before,
    )


def wait_for_import(process: subprocess.Popen[str], module: str) -> None:
    """Wait until Python says that it has imported a module."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("import time:") and line.split("|")[-1].strip() == module:
            return
    pytest.fail(f"{module} was not imported")


def messages(process: subprocess.Popen[str]) -> list[str]:
    err = process.communicate(timeout=120)[1]
    return [line for line in err.splitlines() if line and not line.startswith("import time:")]


@pytest.mark.parametrize("how", STARTS)
@pytest.mark.parametrize(
    "module",
    [
        "difflib",
        "torch._utils_internal",
        "torch.functional",
        "timm.layers",
    ],
)
def test_ctrl_c_during_an_import_prints_one_line(how: str, module: str) -> None:
    process = start(how, "models", before=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_for_import(process, module)
    process.send_signal(signal.SIGINT)
    assert messages(process) == ["Interrupted."]
    assert process.returncode == 130


def test_a_process_that_ignores_ctrl_c_is_not_interrupted() -> None:
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
    process = start("module", "--version", before=ignore)
    wait_for_import(process, "difflib")
    process.send_signal(signal.SIGINT)
    assert messages(process) == []
    assert process.returncode == 0


def test_python_m_convattn_is_recorded_as_convattn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/convattn/__main__.py", "--version"])
    with pytest.raises(SystemExit):
        runpy.run_module("convattn", run_name="__main__")
    assert sys.argv == ["convattn", "--version"]  # a run records these words
