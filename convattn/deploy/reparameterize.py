"""Build the deployed form of a model: modules fold themselves, then batch norms are folded."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from convattn.deploy.copying import computed_memo
from convattn.deploy.neighbours import fold_neighbours
from convattn.layers.foldable import folding, may_fold_itself
from convattn.layers.holders import synchroniser
from convattn.layers.leftovers import reason_lines

Model = TypeVar("Model", bound=nn.Module)

_LINES = 8  # of a warning


def reparameterize(model: Model, *, inplace: bool = False) -> Model:
    """Return the deployed form of a model: the same function in evaluation mode, but faster.

    First, ``reparameterize()`` of the model and of every module in it that has this method is
    called: operators and backbones of this package, and modules of other packages with this method,
    such as timm's re-parameterised blocks. Then batch norms that follow a convolution or an
    operator are folded into it, in networks of other libraries too: networks of torchvision and
    timm in which `convattn.replace` put an operator, or your modules around a backbone.
    ``torch.fx`` finds which module follows which. Norms are not folded in parts that ``torch.fx``
    cannot trace, in modules that occur more than once, and in modules that have their own ``fuse``
    (models of Ultralytics).

    A layer is not folded if folding would lose something that is attached to it: hooks (forward,
    backward, or before either), a parametrization, pruning, weight norm, a ``forward`` that was
    replaced on the instance, an adapter, or another class. All other layers are folded, and one
    warning names the layers that are not, with the reasons. Global hooks and hooks of state dicts
    do not prevent folding.

    The result differs from the model by rounding only; weights are computed in float32 or float64.
    See `convattn.deploy.parity`. Folding cannot be undone, and the deployed form is not for
    training: it has no batch norms.

    A deployed form does not call its inner layers one by one: hooks on them may never be called.
    Its state dict has other names and weights. To load one, build the model, call
    ``reparameterize``, then ``load_state_dict``.

    Args:
        model: Any network, in training or evaluation mode. A second call changes nothing.
        inplace: Whether to change the model itself; otherwise a copy is changed.

    Returns:
        The deployed form, in evaluation mode.

    Raises:
        TypeError: The model is not an ``nn.Module``, or is scripted or exported.
        ValueError: The model cannot be copied, or is wrapped for training in several processes
            (`DistributedDataParallel`, FSDP), where parameters cannot be replaced.
    """
    _check(model)
    if not inplace:
        model = _copied(model)
    with folding(model.eval()) as state:
        _visit(model, set())
        fold_neighbours(model)
    _warn(state.left(model))
    return model.eval()  # also the new modules


def _warn(left: Mapping[str, str]) -> None:
    if not left:
        return
    lines = reason_lines("left", left)
    more = [f"  and {len(lines) - _LINES} more reasons"] if len(lines) > _LINES else []
    layers = "1 layer as it is" if len(left) == 1 else f"{len(left)} layers as they are"
    head = f"reparameterize left {layers}:"
    warnings.warn("\n".join([head, *lines[:_LINES], *more]), stacklevel=3)


def _visit(module: nn.Module, seen: set[nn.Module]) -> None:
    """Fold a module, then its remaining children; a shared module is folded once."""
    if module in seen:
        return
    seen.add(module)
    fold = getattr(module, "reparameterize", None)
    if fold is not None and _takes_nothing(fold) and _may_be_asked(module, fold):
        fold()
    for child in list(module.children()):
        _visit(child, seen)


def _may_be_asked(module: nn.Module, fold: Any) -> bool:
    ours = getattr(fold, "__module__", "").partition(".")[0] == "convattn"
    return ours or may_fold_itself(module)


def _takes_nothing(method: object) -> bool:
    """Return whether a method needs no arguments: ``reparameterize(mu, ...)`` of a VAE does."""
    if not callable(method):
        return False
    kinds = inspect.signature(method).parameters.values()
    return all(
        p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in kinds
    )


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{type(model).__name__} is a TorchScript module, which cannot be changed: call "
            "reparameterize on the model first, then trace or export the result"
        )
    for kind in filter(None, map(synchroniser, model.modules())):
        raise ValueError(
            f"{kind} keeps a list of the model's parameters, which folding replaces: call "
            "reparameterize before the model is wrapped, or on the model inside (model.module)"
        )


def _copied(model: Model) -> Model:
    try:
        return copy.deepcopy(model, computed_memo(model))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be copied ({error}); use inplace=True, which changes "
            "the model itself"
        ) from error
