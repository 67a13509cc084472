"""A model in its deployed form: every module folds what it can, then norms go where they follow."""

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
    """Return the deployed form of a model: the same function in evaluation, with less to compute.

    The model itself and every module in it that has ``reparameterize()`` is asked to fold: the
    operators and backbones of this package, and what follows that convention elsewhere (timm's
    re-parameterised blocks). Then batch norms that follow a convolution, or one of the operators,
    are folded into it in networks of other libraries too: those of torchvision and timm in which
    `convattn.replace` put an operator, or modules of yours around a backbone. What follows what is
    read from the code by ``torch.fx``; parts that it cannot trace keep their norms, as do modules
    that are used in several places, or that have a ``fuse`` of their own (Ultralytics' models).

    A layer stays as it is where something is attached to it that would be lost or would see other
    values: hooks (forward, backward, or before either), a parametrization, pruning, weight norm, a
    ``forward`` that was replaced on the instance, or an adapter or another class in its place. The
    rest of the model is folded, and one warning names those layers with the reasons. Hooks of all
    modules and hooks of state dicts do not count.

    It is exact: it changes the result by rounding alone, and weights are computed in float32 at
    least. See `convattn.deploy.parity`. There is no way back, and nothing in it for training:
    the norms that folded are gone.

    A deployed form does not call its inner layers one by one: hooks on them may never be called. It
    has other weights under other names than the trained one. To load a file of it,
    build the model, call ``reparameterize``, then ``load_state_dict``.

    Args:
        model: Any network, in training or evaluation. Calling it again changes nothing.
        inplace: Whether to change the model itself; else a copy is made, and the model is left as
            it is.

    Returns:
        The deployed form, in evaluation.

    Raises:
        TypeError: For what is no ``nn.Module``, or a scripted or exported one.
        ValueError: If the model cannot be copied, or is wrapped for training in several processes
            (`DistributedDataParallel`, FSDP), where the parameters cannot be exchanged.
    """
    _check(model)
    if not inplace:
        model = _copied(model)
    with folding(model.eval()) as state:
        _visit(model, set())
        fold_neighbours(model)
    _warn(state.left(model))
    return model.eval()  # what is new in it too


def _warn(left: Mapping[str, str]) -> None:
    if not left:
        return
    lines = reason_lines("left", left)
    more = [f"  and {len(lines) - _LINES} more reasons"] if len(lines) > _LINES else []
    layers = "1 layer as it is" if len(left) == 1 else f"{len(left)} layers as they are"
    head = f"reparameterize left {layers}:"
    warnings.warn("\n".join([head, *lines[:_LINES], *more]), stacklevel=3)


def _visit(module: nn.Module, seen: set[nn.Module]) -> None:
    """Let a module fold, then those that are left in it; one that is shared, once."""
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
    """Return whether a method can be called as it is; in a VAE the name means something else."""
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
            f"{type(model).__name__} is a script, whose code is fixed: call reparameterize on the "
            "model first, then trace or export the result"
        )
    for kind in filter(None, map(synchroniser, model.modules())):
        raise ValueError(
            f"{kind} keeps a list of the parameters in it, which folding exchanges: call "
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
