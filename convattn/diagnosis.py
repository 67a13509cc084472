"""The facts about a machine that a bug report needs, and a check that its operators are correct.

No function here raises an error: a section that fails contains the error.
"""

from __future__ import annotations

import os
import platform
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from convattn import machine
from convattn.ops.kernels.native.library import status
from convattn.ops.processor import onednn_computes, vector_instructions
from convattn.ops.self_check import Check, self_check
from convattn.requirements import Need, needs
from convattn.version import __version__

# Packages that are listed in addition to the requirements of this package.
_PACKAGES = ("numpy", "pillow", "safetensors", "huggingface-hub")
_TRITONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows")
_USES = {
    "train": "convattn train, eval, predict; bench --plot",
    "yolo": "operators in Ultralytics' models",
    "segment": "backbones in segmentation-models-pytorch",
    "export": "ONNX files",
}
_VARIABLES = "CC$|CUDA_VISIBLE_DEVICES$|HIP_VISIBLE_DEVICES$|TRITON_INTERPRET$|XDG_CACHE_HOME$"
_GIB = 2**30
_LEAST_SHARED_MEMORY = _GIB

Section = dict[str, Any]  # texts by name


class Diagnosis(NamedTuple):
    """The result of `diagnose`."""

    sections: dict[str, Section]
    faults: list[str]  # reasons why this package computes wrong results, or none
    hints: list[str]  # reasons why this package is slow, or lacks a feature


def diagnose() -> Diagnosis:
    """Return all sections; the C kernels are compiled if that has not been done."""
    found = Diagnosis({}, [], [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sections contain what is wrong
        for name, describe in _SECTIONS.items():
            found.sections[name] = _attempt(describe, found)
    return Diagnosis(*map(_without_home, found))


def _attempt(describe: Callable[[Diagnosis], Section], found: Diagnosis) -> Section:
    try:
        return describe(found)
    except Exception as error:
        return {"unknown": f"{type(error).__name__}: {error}"}


def _software(found: Diagnosis) -> Section:
    commit = machine.git_commit()
    changed = ", changed since" if commit and machine.differs_from_commit() else ""
    return {
        "convattn": __version__,
        "commit": f"{commit}{changed}" if commit else "none: no git checkout, or no git",
        "Python": f"{platform.python_version()}, {struct.calcsize('P') * 8} bits",
        "system": platform.platform(),
    }


def _machine(found: Diagnosis) -> Section:
    return {
        "processor": machine.processor_name(),
        "instruction sets": ", ".join(machine.processor_flags()) or "none that the kernels use",
        "cores": _cores(),
        "memory": _of_which(machine.memory(), machine.memory_limit()),
        "/dev/shm": _shared_memory(found),
    }


def _cores() -> str:
    quota = machine.core_quota()
    limit = f"; the container may use {quota:g} of them" if quota is not None else ""
    usable = machine.usable_cores()
    return f"{os.cpu_count()}" + (f", usable {usable}" if usable else "") + limit


def _of_which(there: int | None, limit: int | None) -> str:
    size = "unknown" if there is None else _size(there)
    return size if limit is None else f"{size}; the container has {_size(limit)}"


def _shared_memory(found: Diagnosis) -> str:
    there = machine.shared_memory()
    if there is None:
        return "none"
    if there < _LEAST_SHARED_MEMORY:
        found.hints.append(
            f"/dev/shm has {_size(there)}, through which loading processes send images: enlarge it "
            "(docker run --shm-size=2g), or train with workers=0"
        )
    return _size(there)


def _packages(found: Diagnosis) -> Section:
    asked: dict[str, list[Need]] = {}
    for need in needs():
        asked.setdefault(need.package, []).append(need)
    for need in (need for group in asked.values() for need in group):
        if not need.extra and not need.is_met:
            found.faults.append(f"convattn needs {need}, but {need.installed} is installed")
    lines = {name: _installed(group) for name, group in asked.items()}
    others = {n: machine.package_version(n) or "not installed" for n in _PACKAGES}
    return dict(sorted({**others, **lines}.items()))


def _installed(group: list[Need]) -> str:
    if group[0].installed is None:
        return "not installed"
    unmet = [f"convattn{f'[{n.extra}]' if n.extra else ''}" for n in group if not n.is_met]
    wanted = f", but {unmet[0]} needs {group[0].versions}" if unmet else ""
    return f"{group[0].installed}{wanted}"


def _pytorch(found: Diagnosis) -> Section:
    return {
        "version": torch.__version__,
        "vectors": vector_instructions(),
        "threads": f"{torch.get_num_threads()}",
        "oneDNN": _yes(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled),
        "bfloat16 in oneDNN": _yes(onednn_computes(torch.bfloat16)),
        "float16 in oneDNN": _yes(onednn_computes(torch.float16)),
    }


def _variables(found: Diagnosis) -> Section:
    return dict(machine.environment_variables(_VARIABLES)) or {
        "none": "that changes the speed is set"
    }


def _native(found: Diagnosis) -> Section:
    known = status()
    size = sum(build.stat().st_size for build in known.builds)
    builds = f", builds: {len(known.builds)}, {size / 2**20:.1f} MiB" if known.builds else ", empty"
    if known.reason:
        found.hints.append(f"operators run without C kernels, slower: {known.reason}")
    return {
        "state": known.reason or "compiled",
        "compiler": ": ".join(filter(None, (known.compiler, known.version))) or "none",
        "cache": f"{known.cache}{builds}" if known.cache else "none: the user has no home folder",
    }


def _triton(found: Diagnosis) -> Section:
    named = next(filter(None, map(machine.package_version, _TRITONS)), None)
    there = find_spec("triton") is not None
    return {"version": named or ("unknown" if there else "not installed")}


def _devices(found: Diagnosis) -> Section:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    built = torch.version.cuda or torch.version.hip
    lines = {
        "PyTorch's CUDA": f"{built}" if built else "none: this PyTorch is built for CPUs only",
        "driver": _driver() or "none found",
        **(
            {f"cuda:{i}": _device(i) for i in range(count)} or {"GPUs": "none that PyTorch can use"}
        ),
        "MPS": _yes(torch.backends.mps.is_available()),
    }
    return lines if not said else {**lines, "PyTorch says": str(said[0].message).split("\n")[0]}


def _device(index: int) -> str:
    try:
        of = torch.cuda.get_device_properties(index)
        return f"{of.name}, capability {of.major}.{of.minor}, {_size(of.total_memory)}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _driver() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return None
    number = re.search(r"\d+\.\d+(\.\d+)?", text)
    return number and f"NVIDIA {number[0]}"


def _checks(found: Diagnosis) -> Section:
    lines: Section = {}
    for where, backend, device in _paths():
        for check in self_check(backend, device):
            name = f"{check.operator}{where}"
            text = f"{str(check.dtype).removeprefix('torch.')} {_result(check)}"
            lines[name] = f"{lines[name]}, {text}" if name in lines else text
            if not check.is_right:
                found.faults.append(f"self-check of {name}: {text}")
    return lines


def _paths() -> Iterator[tuple[str, str, str]]:
    yield "", "auto", "cpu"
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        yield f", cuda:{i}", "auto", f"cuda:{i}"
        if find_spec("triton") is not None:
            yield f", cuda:{i}, Triton", "triton", f"cuda:{i}"


def _result(check: Check) -> str:
    if check.error:
        return f"fails with {check.error.splitlines()[0]}"
    return "ok" if check.is_right else f"differs by {check.difference:.1g}"


def _extras(found: Diagnosis) -> Section:
    known = needs()
    if not known:
        return {"unknown": "convattn is not installed as a package: pip install -e ."}
    extras: dict[str, list[Need]] = {}
    for need in filter(lambda need: need.extra, known):
        extras.setdefault(need.extra, []).append(need)
    return {extra: _extra(extra, group) for extra, group in extras.items()}


def _extra(extra: str, group: list[Need]) -> str:
    use = f" for {_USES[extra]}" if extra in _USES else ""
    lacking = [str(need) for need in group if not need.is_met]
    if not lacking:
        return f"complete{use}"
    return f"lacks {', '.join(lacking)}{use}: pip install 'convattn[{extra}]'"


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _size(number: int) -> str:
    return f"{number / _GIB:.1f} GiB" if number >= _GIB else f"{number / 2**20:.0f} MiB"


def _without_home(value: Any) -> Any:
    """Return texts with ``~`` in place of the user's home folder."""
    if isinstance(value, dict):
        return {key: _without_home(text) for key, text in value.items()}
    if isinstance(value, list):
        return [_without_home(text) for text in value]
    home = os.path.expanduser("~")
    if not os.path.isabs(home) or home == os.sep:
        return value
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", str(value))


_SECTIONS: dict[str, Callable[[Diagnosis], Section]] = {
    "software": _software,
    "machine": _machine,
    "packages": _packages,
    "PyTorch on this processor": _pytorch,
    "variables": _variables,
    "C kernels": _native,
    "Triton": _triton,
    "devices": _devices,
    "self-check": _checks,
    "extras": _extras,
}
