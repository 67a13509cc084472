"""Fusing and training of Ultralytics' detectors whose convolutions were replaced."""

from __future__ import annotations

import copy
import functools
from typing import Any

from torch import Tensor, nn
from ultralytics.engine.model import Model
from ultralytics.nn.modules import Conv, RepConv
from ultralytics.utils import LOGGER

_MARK = "keeps_replaced"  # an attribute of trainers, and of Model.train, that keep the operators


class _Changed:
    """Marks a network whose convolutions were replaced.

    Copies and checkpoints of the network contain the mark. Unpickling it makes ``YOLO.train()`` use
    `trainer`. Checkpoints contain the name `_changed`, so it must stay.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _changed, ()


def _changed() -> _Changed:
    _train_with_operators()
    return _Changed()


class UnfusedConv(nn.Module):
    """An Ultralytics `Conv` whose convolution was replaced: ``y = act(BN(conv(x)))``.

    The submodules keep their names. ``fuse()`` skips this class: it cannot fold the norm into an
    operator.
    """

    conv: nn.Module
    bn: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H_out, W_out)."""
        return self.act(self.bn(self.conv(x)))


class UnfusedRepConv(nn.Module):
    """An Ultralytics `RepConv` with a replaced branch: ``y = act(conv1(x) + conv2(x) [+ bn(x)])``.

    ``fuse()`` skips this class: it cannot merge an operator with a convolution.
    """

    conv1: nn.Module
    conv2: nn.Module
    bn: nn.Module | None
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H_out, W_out)."""
        y = self.conv1(x) + self.conv2(x)
        return self.act(y if self.bn is None else y + self.bn(x))


def adopt(model: nn.Module) -> list[str]:
    """Prepare a model for ``fuse()`` and ``train()`` after convolutions were replaced, in place.

    A `Conv` that holds an operator becomes an `UnfusedConv`, a `RepConv` with such a branch an
    `UnfusedRepConv`; state-dict names stay. Validation, prediction and export call ``fuse()``. The
    model is marked, and in this process ``YOLO(...).train()`` of a marked model uses `trainer` by
    default. `convattn.replace` calls this function.

    Args:
        model: a model of Ultralytics, such as ``YOLO(...).model``.

    Returns:
        The names of the modules whose class was changed.
    """
    names: list[str] = []
    for name, layer in model.named_modules():
        holds = isinstance(layer, Conv) and not isinstance(layer.conv, nn.Conv2d)
        if holds and hasattr(layer, "bn"):  # a fused Conv has no norm
            layer.__class__ = UnfusedConv
            names.append(name)
    for name, layer in model.named_modules():
        branches = list(layer.children()) if isinstance(layer, RepConv) else []
        if any(isinstance(branch, UnfusedConv) for branch in branches):
            layer.__class__ = UnfusedRepConv
            names.append(name)
    model.changed_by_convattn = _changed()  # type: ignore[assignment]  # it is neither a tensor nor a module
    return names


def trainer(yolo: Any) -> Any:
    """Return a trainer class that keeps the operators of a network that `convattn.replace` changed.

    A trainer of Ultralytics builds a new network from the YAML, which does not contain the
    operators; this trainer puts copies of them into the new network. ``yolo.train(data=...)`` uses
    it by default. A trainer of your own must be derived from it:
    ``yolo.train(trainer=Yours, data=...)``.

    Args:
        yolo: ``YOLO(...)``. Training starts from its weights; if the number of classes changes, the
            head is initialized.
    """
    changed = yolo.model
    base: Any = yolo._smart_load("trainer")

    class Trainer(base):
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            model = super().get_model(cfg, weights or changed, verbose)
            built = dict(model.named_modules())
            for name, new in changed.named_modules():
                if isinstance(built.get(name), nn.Conv2d) and not isinstance(new, nn.Conv2d):
                    model.set_submodule(name, copy.deepcopy(new).float().requires_grad_(True))
            adopt(model)
            return model

    setattr(Trainer, _MARK, True)
    return Trainer


_trainer = trainer  # an argument below has the name `trainer`


def _train_with_operators() -> None:
    """Make ``YOLO(...).train()`` use `trainer` for marked networks; do this once per process."""
    train = Model.train
    if hasattr(train, _MARK):
        return

    @functools.wraps(train)
    def train_with_operators(self: Any, trainer: Any = None, **arguments: Any) -> Any:
        modules = self.model.modules() if isinstance(self.model, nn.Module) else []
        if any(isinstance(vars(module).get("changed_by_convattn"), _Changed) for module in modules):
            if trainer is None:
                LOGGER.info("convattn: training keeps the operators that replaced convolutions")
                trainer = _trainer(self)
            elif not hasattr(trainer, _MARK):
                LOGGER.warning(
                    "convattn: this trainer may build the network from its YAML, without the "
                    "operators that replaced convolutions; derive the trainer from "
                    "convattn.integrations.ultralytics.trainer(yolo)"
                )
        return train(self, trainer, **arguments)

    setattr(train_with_operators, _MARK, True)
    Model.train = train_with_operators  # type: ignore[method-assign]
