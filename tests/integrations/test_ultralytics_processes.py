"""New processes, started by Ultralytics or by others, register the names of the operators."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ultralytics: Any = pytest.importorskip("ultralytics", exc_type=ImportError)

from ultralytics.engine.trainer import BaseTrainer  # noqa: E402
from ultralytics.utils import dist  # noqa: E402

import convattn  # noqa: E402
from convattn.integrations import ultralytics as ours  # noqa: E402
from tests.integrations.detectors import small  # noqa: E402
from tests.integrations.trainers import Mine  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def second_device(squares, monkeypatch):
    """Train as on several devices: the file for a device's process runs in a new process."""

    def train(yolo: Any, **arguments: Any) -> subprocess.CompletedProcess[str]:
        done = []

        def start(trainer: Any) -> None:
            path = dist.generate_ddp_file(trainer)
            done.append(run(path, cwd=squares.parent))
            dist.ddp_cleanup(trainer, path)
            raise InterruptedError  # the rest of train() reads files of a complete training

        monkeypatch.chdir(squares.parent)
        monkeypatch.setattr(BaseTrainer, "train", start)
        options = {**small(), "device": "cpu", "amp": False, "nbs": 4, "epochs": 1}
        project = str(squares.parent / "runs")
        with pytest.raises(InterruptedError):
            yolo.train(data=str(squares), project=project, **options, **arguments)
        return done[0]

    return train


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process that finds this package."""
    paths = [str(Path(convattn.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def operators(folder: Path) -> int:
    (path,) = folder.glob("runs/*/weights/last.pt")
    model = ultralytics.YOLO(path).model
    return sum(isinstance(module, convattn.ACmix) for module in model.modules())


@pytest.mark.parametrize("trainer", [None, Mine])
def test_the_process_of_a_second_device_registers_the_names(trainer, second_device, squares):
    done = second_device(ultralytics.YOLO(ours.recipe()), trainer=trainer)
    assert done.returncode == 0, done.stderr
    assert operators(squares.parent) == 5


def test_the_file_or_the_callbacks_are_enough_to_register(second_device, monkeypatch):
    yolo = ultralytics.YOLO(ours.recipe())
    yolo.reset_callbacks()  # only the callbacks of Ultralytics remain
    assert second_device(yolo).returncode == 0
    yolo = ultralytics.YOLO(ours.recipe())
    monkeypatch.setattr(dist, "generate_ddp_file", inspect.unwrap(dist.generate_ddp_file))
    assert second_device(yolo).returncode == 0


def test_the_process_of_a_second_device_trains_the_operators(second_device, squares):
    yolo = ultralytics.YOLO("yolo11n.yaml")
    convattn.replace(yolo.model, "acmix", where="model.8.m.*.m.*.cv2.conv", keep=True)
    done = second_device(yolo)
    assert done.returncode == 0, done.stderr
    assert operators(squares.parent) == 2


BUILD = "from ultralytics.nn.tasks import DetectionModel; DetectionModel({path!r}, verbose=False)"


def test_importing_the_file_registers_the_names(tmp_path):
    code = f"import convattn.integrations.ultralytics; {BUILD.format(path=str(ours.recipe()))}"
    assert run("-c", code, cwd=tmp_path).returncode == 0


def build_here(path: str) -> None:
    from ultralytics.nn.tasks import DetectionModel

    DetectionModel(path, verbose=False)


def test_a_spawned_process_registers_the_names(tmp_path):
    """It imports this module to unpickle the target, and this module imports the integration."""
    context: Any = torch.multiprocessing.get_context("spawn")
    process = context.Process(target=build_here, args=(str(ours.recipe()),))
    process.start()
    process.join(120)
    assert process.exitcode == 0


def test_the_import_does_not_change_the_random_state(tmp_path):
    code = (
        "import torch; state = torch.get_rng_state()\n"
        "import convattn.integrations.ultralytics\n"
        "assert torch.equal(torch.get_rng_state(), state)"
    )
    done = run("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command_registers_the_names(squares):
    path = ours.write_yaml("yolo11n.yaml", "ACmix", squares.parent)
    assert "python -m convattn.integrations.yolo" in path.read_text()
    options = {**small(), "device": "cpu", "amp": False, "epochs": 1, "data": squares}
    options |= {"model": path, "project": squares.parent / "runs"}
    arguments = [f"{name}={value}" for name, value in options.items()]
    command = ("-m", "convattn.integrations.yolo", "detect", "train")
    done = run(*command, *arguments, cwd=squares.parent)
    assert done.returncode == 0, done.stderr
    assert operators(squares.parent) > 0
