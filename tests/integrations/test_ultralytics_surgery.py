"""Detectors of Ultralytics whose convolutions `convattn.replace` changed."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import nn

ultralytics: Any = pytest.importorskip("ultralytics", exc_type=ImportError)

from ultralytics.engine.model import Model  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402
from ultralytics.nn import tasks  # noqa: E402
from ultralytics.nn.modules import Conv  # noqa: E402
from ultralytics.utils import LOGGER  # noqa: E402

import convattn  # noqa: E402
from convattn import ACmix  # noqa: E402
from convattn.integrations import ultralytics as ours  # noqa: E402
from convattn.layers import ConvBeside  # noqa: E402
from tests.integrations.detectors import DEVICE, maps, small, wake  # noqa: E402

pytestmark = pytest.mark.slow

WHERE = "model.8.m.*.m.*.cv2.conv"


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("operator", ["acmix", "xvolution", "glmix"])
def test_a_changed_detector_still_fuses(operator, keep):
    model = wake(tasks.DetectionModel("yolo11n.yaml", verbose=False))
    x = torch.rand(1, 3, 64, 96)
    plain = maps(model, x)
    names = list(model.state_dict())
    report = convattn.replace(model, operator, where="model.[57].conv", keep=keep)
    assert list(report.replaced) == ["model.5.conv", "model.7.conv"]
    convattn.replace(model, operator, where="model.8.m.*.cv2.conv", keep=keep)
    assert not any(isinstance(model.get_submodule(n), nn.Conv2d) for n in report.replaced)
    assert {n for n in names if ".conv." not in n} <= set(model.state_dict())
    assert [layer.i for layer in model.model] == list(range(len(model.model)))
    changed = maps(wake(model), x) if not keep else maps(model, x)
    if keep:
        torch.testing.assert_close(changed, plain, rtol=0, atol=0)
    fused = maps(copy.deepcopy(model).fuse(verbose=False), x)
    torch.testing.assert_close(fused, changed, rtol=1e-3, atol=1e-4)
    assert model.fuse(verbose=False).is_fused()
    # a fused Conv has no norm and keeps its class
    convattn.replace(model, operator, where="model.3.conv", keep=keep)
    assert type(model.get_submodule("model.3")) is Conv
    assert all(m.isfinite().all() for m in maps(model, x))


@pytest.mark.parametrize("keep", [False, True])
def test_a_replaced_layer_of_the_yaml_keeps_the_attributes_of_parsed_layers(keep):
    """Ultralytics stores the source of the input on each layer."""
    yaml = {
        "nc": 2,
        "scales": {"n": [1, 1, 1024]},
        "backbone": [
            *([-1, 1, "Conv", [8, 3, 2]], [-1, 1, "nn.Conv2d", [8, 8, 3, 1, 1]]),
            *([-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]),
        ],
        "head": [[[3], 1, "Detect", ["nc"]]],
    }
    model = wake(tasks.DetectionModel(yaml, verbose=False))
    convattn.replace(model, "acmix", where="model.1", keep=keep)
    assert model.model[1].type.endswith("Conv2d")
    assert all(m.isfinite().all() for m in maps(model, torch.rand(1, 3, 64, 96)))


@pytest.mark.parametrize("base", ["yolov9t.yaml", "yolo26n.yaml"])
def test_all_convolutions_can_be_replaced(base):
    model = wake(tasks.DetectionModel(base, verbose=False))
    x = torch.rand(1, 3, 64, 96)
    plain = maps(model, x)
    convattn.replace(model, "glmix", where="*", keep=True, slots=4)
    torch.testing.assert_close(maps(model, x), plain, rtol=0, atol=0)
    fused = maps(model.fuse(verbose=False), x)
    assert model.is_fused()
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_changed_detector_trains_with_its_trainer(squares, monkeypatch):
    monkeypatch.chdir(squares.parent)
    options = {
        "data": str(squares),
        "epochs": 1,
        "nbs": 4,
        "amp": False,
        "project": str(squares.parent / "runs"),
        **small(),
    }
    yolo = ultralytics.YOLO("yolo11n.yaml")
    convattn.replace(yolo.model, "acmix", where=WHERE, keep=True)
    before = copy.deepcopy(yolo.model)
    seen = {}

    def remember(trainer: Any) -> None:
        seen.update({k: v.cpu().clone() for k, v in trainer.model.state_dict().items()})

    yolo.add_callback("on_pretrain_routine_end", remember)
    yolo.train(trainer=ours.trainer(yolo), **options)
    # training starts from the weights of the network; the head changes from 80 classes to one
    names = {name for name, value in before.state_dict().items() if name in seen}
    same = {n for n in names if seen[n].shape == before.state_dict()[n].shape}
    assert all("model.23.cv3" in n for n in set(before.state_dict()) - same)
    assert all(torch.equal(seen[n], before.state_dict()[n]) for n in same if "num_b" not in n)
    again = ultralytics.YOLO(yolo.trainer.best)
    assert again.model.nc == 1
    beside = [m for m in again.model.modules() if isinstance(m, ConvBeside)]
    assert len(beside) == 2
    assert all(isinstance(m.op, ACmix) and m.gamma.abs().max() > 0 for m in beside)
    base: Any = ours.trainer(again)
    trainable: list[bool] = []

    class Watched(base):
        def get_model(self, *arguments: Any, **named: Any) -> Any:
            model = super().get_model(*arguments, **named)
            parameters = model.named_parameters()
            trainable.extend(p.requires_grad for n, p in parameters if ".dfl." not in n)
            return model

    again.train(trainer=Watched, **options)
    assert trainable
    assert all(trainable)  # parameters in a checkpoint are frozen
    assert sum(isinstance(m, ConvBeside) for m in again.model.modules()) == 2
    images = str(squares.parent / "images" / "val" / "0.png")
    assert len(again.predict(images, imgsz=64, device=DEVICE, verbose=False)) == 1


class _BeforeTheFirstStep(Exception):  # noqa: N818  # not an error
    pass


def trained(yolo: Any, squares: Any, **arguments: Any) -> Any:
    """Return the network that ``yolo.train()`` is about to train."""
    seen = []

    def remember(trainer: Any) -> None:
        seen.append(trainer.model)
        raise _BeforeTheFirstStep

    yolo.callbacks["on_pretrain_routine_end"] = [remember]
    project = str(squares.parent / "runs")
    with pytest.raises(_BeforeTheFirstStep):
        yolo.train(data=str(squares), epochs=1, amp=False, project=project, **small(), **arguments)
    return seen[0]


def beside(model: Any) -> int:
    return sum(isinstance(module, ConvBeside) for module in model.modules())


@pytest.mark.parametrize("where", [WHERE, "model.23.cv2.?.2"])
def test_train_without_a_trainer_keeps_the_operators(where, squares, monkeypatch):
    monkeypatch.chdir(squares.parent)
    monkeypatch.setattr(Model, "train", inspect.unwrap(Model.train))
    yolo = ultralytics.YOLO("yolo11n.yaml")
    expected = len(convattn.replace(yolo.model, "glmix", where=where, keep=True).replaced)
    assert beside(trained(yolo, squares)) == expected
    ultralytics.YOLO("yolo11n.yaml").save("plain.pt")
    yolo = ultralytics.YOLO("plain.pt")
    convattn.replace(yolo.model, "glmix", where=where, keep=True)
    yolo.save("changed.pt")
    assert beside(trained(yolo, squares)) == expected
    # as in a new process
    monkeypatch.setattr(Model, "train", inspect.unwrap(Model.train))
    assert beside(trained(ultralytics.YOLO("changed.pt"), squares)) == expected
    assert beside(trained(ultralytics.YOLO("plain.pt"), squares)) == 0


def test_another_trainer_warns_that_it_may_lose_operators(squares, monkeypatch, caplog):
    monkeypatch.chdir(squares.parent)
    monkeypatch.setattr(LOGGER, "propagate", True)
    yolo = ultralytics.YOLO("yolo11n.yaml")
    convattn.replace(yolo.model, "glmix", where=WHERE, keep=True)
    trained(yolo, squares, trainer=type("Mine", (ours.trainer(yolo),), {}))
    assert "trainer(yolo)" not in caplog.text
    trained(yolo, squares, trainer=DetectionTrainer)
    assert "derive the trainer from convattn.integrations.ultralytics.trainer(yolo)" in caplog.text
