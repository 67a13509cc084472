"""Runs timm's own tests/test_models.py on this package's models.

``python -m tests.models.timm_suite [PATTERN]`` takes the file from the source distribution of the
timm that is installed, and puts this package's names in the place of timm's. Tests of single models
of timm are left out, and tests of TorchScript: timm has a list of models without it, which all
models of this package would be on.
"""

from __future__ import annotations

import collections
import fnmatch
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import convattn

_PATTERN = "CONVATTN_TIMM_SUITE"  # carries the pattern to the processes that run the tests
_CACHE = Path(sys.prefix) / "timm-tests" / timm.__version__
_MARKERS = (
    "timeout",
    "base",
    "forward",
    "backward",
    "cfg",
    "cfg_nonstd",
    "torchscript",
    "features",
    "fxforward",
    "fxbackward",
)


def test_file() -> Path:
    """Return timm's test file, fetched once from its source distribution."""
    path = _CACHE / "test_models.py"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as folder:
        wanted = ["--no-deps", "--no-binary", "timm", f"timm=={timm.__version__}"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--dest", folder, *wanted], check=True)
        (archive,) = Path(folder).glob("timm-*.tar.gz")
        with tarfile.open(archive) as content:
            member = content.extractfile(f"timm-{timm.__version__}/tests/test_models.py")
            assert member is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(member.read())
    return path


def our_names() -> list[str]:
    """Return the names of the models that this run tests."""
    return convattn.list_models(os.environ.get(_PATTERN, "*"))


def _list_models(
    filter: str | Sequence[str] = "",  # as timm calls it
    module: str | Sequence[str] = "",
    pretrained: bool = False,
    exclude_filters: str | Sequence[str] = "",
    **_: Any,
) -> list[str]:
    """Answer as `timm.list_models` would if there were no models but these."""
    if pretrained:
        return []
    names = our_names()
    if filter:
        names = [name for name in names if _matches(name, filter)]
    return [name for name in names if not _matches(name, exclude_filters)]


def _matches(name: str, patterns: str | Iterable[str]) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _patch(replacement: Callable[..., list[str]]) -> None:
    for place in (timm, timm.models):
        vars(place)["list_models"] = replacement


def pytest_configure(config: pytest.Config) -> None:
    """Put our names in the place of timm's before the file asks for them."""
    torch.set_num_threads(1)  # the tests run side by side
    _patch(_list_models)
    for marker in _MARKERS:
        config.addinivalue_line("markers", f"{marker}: one of timm's")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of models of timm, and of TorchScript."""
    names = set(our_names())
    ours: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        name = getattr(getattr(item, "callspec", None), "params", {}).get("model_name")
        (ours if name in names and "torchscript" not in item.name else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = ours


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many cases each family passed."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            names = [name for name in our_names() if re.search(rf"\b{name}\b", report.nodeid)]
            for name in names:
                counts[family(name)][outcome] += 1
    for group, count in sorted(counts.items()):
        terminalreporter.write_line(f"{group}: {', '.join(f'{n} {w}' for w, n in count.items())}")


def family(name: str) -> str:
    """Return what a model's name has in common with those of its family."""
    return re.sub(r"(_nano|_tiny|_small|_stl|_paramslot|_\d+g|_tklb|_conv|_attn|\d+)+$", "", name)


def main(arguments: Sequence[str]) -> int:
    """Run the suite on the models that the first argument matches; the rest is pytest's."""
    pattern = arguments[0] if arguments else "*"
    os.environ[_PATTERN] = pattern
    if not our_names():
        raise SystemExit(f"no model matches {pattern!r}; see convattn.list_models()")
    options = ["-q", "-p", __spec__.name, "-c", os.devnull, "-p", "no:cacheprovider"]
    options += ["--rootdir", str(_CACHE), "-n", "auto", "-W", "ignore"]
    return int(pytest.main([*options, *arguments[1:], str(test_file())]))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
