"""Ultralytics' detectors that `convattn.replace` changed: how they fuse and train."""

from __future__ import annotations

import copy
import functools
from typing import Any

from torch import Tensor, nn
from ultralytics.engine.model import Model
from ultralytics.nn.modules import Conv, RepConv
from ultralytics.utils import LOGGER

_OURS = "keeps_replaced"  # marks what trains the changed network: our trainers, our ``train()``


class _Changed:
    """Marks a network that `adopt` saw: copies and checkpoints have it, and bring `trainer` along.

    A checkpoint may hold nothing else of this file.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _changed, ()


def _changed() -> _Changed:
    _train_with_our_trainer()
    return _Changed()


class UnfusedConv(nn.Module):
    """An Ultralytics `Conv` whose convolution was replaced: ``y = act(BN(conv(x)))``.

    Its parts have the same names, but ``fuse()``, which would fold the norm into what is no
    convolution any more, passes it by.
    """

    conv: nn.Module
    bn: nn.Module
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to what the part ``conv`` gives, normed and activated."""
        return self.act(self.bn(self.conv(x)))


class UnfusedRepConv(nn.Module):
    """An Ultralytics `RepConv` of which a branch was replaced: ``y = act(conv1(x) + conv2(x))``.

    ``fuse()``, which would make one convolution of its branches, passes it by. ``bn``, a norm of
    ``x``, is added where there is one.
    """

    conv1: nn.Module
    conv2: nn.Module
    bn: nn.Module | None
    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to the sum of the branches, activated."""
        y = self.conv1(x) + self.conv2(x)
        return self.act(y if self.bn is None else y + self.bn(x))


def adopt(model: nn.Module) -> list[str]:
    """Make what holds a replaced convolution fit for ``fuse()``, in place.

    A `Conv` becomes an `UnfusedConv`, a `RepConv` around one an `UnfusedRepConv`: the parts keep
    their names. Validation, prediction and export fuse a model. The network is marked as changed,
    and from here on ``YOLO(...).train()`` of a marked one takes the `trainer` by itself, in this
    process. `convattn.replace` calls this.

    Args:
        model: A model of Ultralytics, such as ``YOLO(...).model``.

    Returns:
        The names of what changed.
    """
    names: list[str] = []
    for name, layer in model.named_modules():
        holds = isinstance(layer, Conv) and not isinstance(layer.conv, nn.Conv2d)
        if holds and hasattr(layer, "bn"):  # without one it is fused already
            layer.__class__ = UnfusedConv
            names.append(name)
    for name, layer in model.named_modules():
        branches = list(layer.children()) if isinstance(layer, RepConv) else []
        if any(isinstance(branch, UnfusedConv) for branch in branches):
            layer.__class__ = UnfusedRepConv
            names.append(name)
    model.changed_by_convattn = _changed()  # type: ignore[assignment]  # what is no tensor
    return names


def trainer(yolo: Any) -> Any:
    """Return the trainer for a network that `convattn.replace` changed.

    Ultralytics trains a network that it builds anew from the YAML, which knows nothing of what was
    replaced; this trainer puts it in again. ``yolo.train(data=...)`` takes it by itself; a trainer
    of your own derives from it: ``yolo.train(trainer=Yours, data=...)``.

    Args:
        yolo: ``YOLO(...)``. Training starts from its weights; a head for another number of
            classes starts anew.
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

    setattr(Trainer, _OURS, True)
    return Trainer


_trainer = trainer  # under another name where an argument has this one


def _train_with_our_trainer() -> None:
    """Let ``YOLO(...).train()`` keep what was replaced; calling this again changes nothing."""
    train = Model.train
    if hasattr(train, _OURS):
        return

    @functools.wraps(train)
    def train_what_is_there(self: Any, trainer: Any = None, **arguments: Any) -> Any:
        modules = self.model.modules() if isinstance(self.model, nn.Module) else []
        if any(isinstance(vars(module).get("changed_by_convattn"), _Changed) for module in modules):
            if trainer is None:
                LOGGER.info("convattn: what was replaced in this network is kept in training")
                trainer = _trainer(self)
            elif not hasattr(trainer, _OURS):
                LOGGER.warning(
                    "convattn: this trainer may build the network anew from its YAML, without what "
                    "was replaced; derive it from convattn.integrations.ultralytics.trainer(yolo)"
                )
        return train(self, trainer, **arguments)

    setattr(train_what_is_there, _OURS, True)
    Model.train = train_what_is_there  # type: ignore[method-assign]
