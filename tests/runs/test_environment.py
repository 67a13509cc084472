from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest

from convattn.runs.environment import environment


def test_the_environment_names_versions_processor_and_kernels() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["torch"]
    assert found["processor"]
    assert found["cpu_kernels"]
    assert isinstance(found["gpus"], list)


@pytest.mark.parametrize(
    ("what", "key"),
    [
        ("platform.platform", "platform"),
        ("os.cpu_count", "cpu_cores"),
        ("torch.cuda.device_count", "gpus"),
        ("torch.get_num_threads", "threads"),
        ("convattn.ops.kernels.native.library.describe", "cpu_kernels"),
    ],
)
@pytest.mark.parametrize("error", [OSError(8, "Exec format error"), RuntimeError("no driver")])
def test_what_cannot_be_found_out_is_none(what: str, key: str, error: Exception) -> None:
    with mock.patch(what, side_effect=error):
        found = environment()
    assert found[key] is None
    assert found["torch"]


def test_the_names_of_gpus_do_not_initialise_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho NVIDIA H200\necho "NVIDIA $4"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    with (
        mock.patch("torch.cuda.device_count", return_value=2),
        mock.patch("torch.cuda.is_initialized", return_value=False),
        mock.patch("torch.cuda.get_device_name", side_effect=AssertionError),
    ):
        assert environment()["gpus"] == ["NVIDIA H200", "NVIDIA 0,3"]
