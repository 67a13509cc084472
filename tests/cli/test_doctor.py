from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from convattn import machine
from convattn.cli import main
from convattn.ops.kernels.native import library

Page = Callable[..., str]


@pytest.fixture(autouse=True)
def _forgets_the_kernels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "installed", library.Library())
        yield


@pytest.fixture
def page(capsys: pytest.CaptureFixture[str]) -> Page:
    """The command's page; its exit status is checked."""

    def run(*words: str, status: int = 0) -> str:
        assert main(["doctor", *words]) == status
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


def line(page: str, name: str) -> str:
    found = re.findall(rf"^  {re.escape(name)} {{2,}}(.*)$", page, re.M)
    assert len(found) == 1, page
    return str(found[0])


def test_the_page_shows_versions_processor_kernels_and_extras(page):
    found = page()
    assert line(found, "timm") == metadata.version("timm")
    assert line(found, "processor") == machine.processor_name()
    assert line(found, "sliding window") == "float32 ok, bfloat16 ok"
    assert line(found, "train").startswith("complete for convattn train, eval, predict")


def test_json_has_the_same_lines(page):
    found = json.loads(page("--json"))
    assert set(found) == {"sections", "faults", "hints"}
    text = page()
    for section in found["sections"].values():
        for name, value in section.items():
            assert f"  {name} " in text
            assert str(value) in text


def test_the_commands_list_it(capsys):
    assert main([]) == 0
    assert "doctor" in capsys.readouterr().out


def test_the_page_says_that_git_and_the_compiler_are_missing(page, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    found = page()
    assert line(found, "commit") == "none: no git checkout, or no git"
    assert line(found, "compiler") == "none"
    if sys.platform == "linux":
        assert "no C compiler" in line(found, "state")
        assert "without C kernels, slower: no C compiler" in found


def test_the_page_names_the_variable_that_disables_the_kernels(page, monkeypatch):
    monkeypatch.setenv("CONVATTN_NATIVE", "0")
    found = page()
    assert line(found, "state") == line(found, "CONVATTN_NATIVE").join(
        ["CONVATTN_NATIVE=", " is set"]
    )


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux")
@pytest.mark.filterwarnings("error")
def test_a_compiler_that_fails_is_a_line(page, monkeypatch, tmp_path):
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("CC", str(program))
    found = page()
    assert "broken could not compile or load the kernels" in line(found, "state")
    assert line(found, "sliding window") == "float32 ok, bfloat16 ok"


def test_a_user_without_a_home_has_no_cache(page, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.setenv("CONVATTN_NATIVE", "0")
    assert line(page(), "cache") == "none: the user has no home folder"


def test_the_home_of_the_user_is_not_shown(page, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("CONVATTN_NATIVE", "0")
    for found in (page(), page("--json")):
        assert str(tmp_path) not in found
        assert f"~{os.sep}.cache" in found
        assert f"~{os.sep}cc" in found


def test_a_path_that_is_not_utf_8_is_written_all_the_same(page, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/caf\udce9")
    monkeypatch.setenv("CONVATTN_NATIVE", "0")
    assert line(page(), "XDG_CACHE_HOME") == "/caf\\udce9"
    assert json.loads(page("--json"))["sections"]["variables"]["XDG_CACHE_HOME"] == "/caf\udce9"


def test_a_system_file_without_read_permission_is_no_error(page, monkeypatch):
    read = Path.read_text

    def refuse(self: Path, *args: Any, **options: Any) -> str:
        if self.is_relative_to("/proc"):
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setenv("CONVATTN_NATIVE", "0")
    assert line(page(), "instruction sets") == "none that the kernels use"


def test_a_section_that_fails_contains_the_error(page, monkeypatch):
    def fail() -> None:
        raise RuntimeError("no such thing")

    monkeypatch.setattr(machine, "usable_cores", fail)
    found = page()
    assert line(found, "unknown") == "RuntimeError: no such thing"
    assert line(found, "sliding window") == "float32 ok, bfloat16 ok"


def test_little_shared_memory_gives_a_hint(page, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=64 * 2**20))
    found = page()
    assert line(found, "/dev/shm") == "64 MiB"
    assert "or train with workers=0" in found


def test_an_operator_with_a_wrong_result_is_a_fault(page, monkeypatch):
    convolve = F.conv2d

    def wrong(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        y = convolve(x, *args, **options)
        return y * 1.5 if x.dtype == torch.float32 else y

    monkeypatch.setattr(F, "conv2d", wrong)
    found = page(status=1)
    assert line(found, "convolution") == "float32 differs by 0.5, bfloat16 ok"
    assert "self-check of convolution: float32 differs by 0.5" in found


def test_an_operator_that_returns_nan_is_a_fault(page, monkeypatch):
    monkeypatch.setattr(F, "conv2d", lambda x, *_, **__: x * torch.nan)
    assert line(page(status=1), "convolution").startswith("float32 differs by nan")


def test_an_operator_that_fails_is_a_fault(page, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("could not create a primitive\nmore")

    monkeypatch.setattr(F, "conv2d", fail)
    failure = "fails with RuntimeError: could not create a primitive"
    assert line(page(status=1), "convolution") == f"float32 {failure}, bfloat16 {failure}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_cannot_be_used_is_a_fault(page, monkeypatch):
    of = SimpleNamespace(name="A100", major=8, minor=0, total_memory=40 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: of)
    found = page(status=1)
    assert line(found, "cuda:0") == "A100, capability 8.0, 40.0 GiB"
    assert line(found, "windows, cuda:0").startswith("float32 fails with ")
    assert line(found, "windows") == "float32 ok, bfloat16 ok"


def _installed(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Make packages appear to have these versions."""
    known = metadata.version

    def version(package: str) -> str:
        found = versions.get(package, known(package) if package not in versions else None)
        if found is None:
            raise metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(machine, "version", version)


def test_a_required_package_that_is_too_old_is_a_fault(page, monkeypatch):
    _installed(monkeypatch, timm="0.9.0")
    found = page(status=1)
    assert re.match(r"0\.9\.0, but convattn needs >=1\.", line(found, "timm"))
    assert re.search(r"convattn needs timm>=1\.\S+, but 0\.9\.0 is installed", found)


def test_a_package_of_an_extra_that_is_too_old_is_marked(page, monkeypatch):
    _installed(monkeypatch, lightning="2.5.0")
    found = page()
    assert re.match(r"2\.5\.0, but convattn\[train\] needs >=2\.", line(found, "lightning"))


def test_an_extra_that_lacks_a_package_says_how_to_install_it(page, monkeypatch):
    _installed(monkeypatch, lightning=None)
    found = page()
    assert line(found, "lightning") == "not installed"
    assert re.fullmatch(
        r"lacks lightning>=\S+ for convattn train, .*: pip install 'convattn\[train\]'",
        line(found, "train"),
    )


def test_without_metadata_the_extras_are_unknown(page, monkeypatch):
    def unknown(package: str) -> None:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr("convattn.requirements.metadata", unknown)
    assert "not installed as a package" in line(page(), "unknown")
