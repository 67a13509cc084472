"""Slot maps: the weights of the slots at each position, computed by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from convattn.layers.glmix import GLMix
from convattn.ops.glmix.slots import kmeans_clustering, pool_slots
from convattn.ops.reference import glmix as reference


def slot_maps(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the soft assignment of positions to slots in every GLMix of a model.

    ``A[m, p] = softmax over m (tau * cos(S0_m, u_p))``, the weight of slot m at position p.

    Args:
        model: any model; it runs once in evaluation mode without gradients and is left as it was.
        x: the model's input (B, C, H, W), on the model's device and of its dtype.

    Returns:
        By module name in the order of the forward pass, maps (B, M, H, W) in float32 that sum to
        one over the slots. Empty for a model without slots.

    GLMix (NeurIPS 2024, arXiv 2411.14429), dispatching.
    """
    maps: dict[str, Tensor] = {}
    with ExitStack() as hooks, _evaluating(model), torch.no_grad():
        for name, mixer in _mixers_with_slots(model):
            record = partial(_record, maps, name)
            hooks.enter_context(mixer.register_forward_pre_hook(record, with_kwargs=True))
        model(x)
    return maps


def last_of_each_size(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep the last map of each height and width: one per stage of a pyramid."""
    last = {tuple(m.shape[-2:]): name for name, m in maps.items()}
    return {name: maps[name] for name in last.values()}


def _mixers_with_slots(model: nn.Module) -> Iterator[tuple[str, GLMix]]:
    for name, module in model.named_modules():
        if isinstance(module, GLMix) and module.branches != "local":
            yield name, module


def _record(
    maps: dict[str, Tensor], name: str, mixer: GLMix, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    maps[name] = _assignment(mixer, *args, **kwargs).float()


def _assignment(mixer: GLMix, x: Tensor, context: Tensor | None = None) -> Tensor:
    u = mixer.local(x) if mixer.branches == "sequential" else x
    slots = _initial_slots(mixer, x if context is None else context)
    if mixer.clustering == "kmeans":
        slots = kmeans_clustering(slots, u, mixer.kmeans_iterations)
    # One-hot slots, dispatched to a position, give the weights of the slots there.
    number = slots.shape[1]
    one_hot = torch.eye(number, dtype=u.dtype, device=u.device).expand(len(u), -1, -1)
    return reference.dispatch(slots, one_hot, u, mixer.slot_scale)


def _initial_slots(mixer: GLMix, context: Tensor) -> Tensor:
    if mixer.slot_grid is None:
        return mixer.slots.expand(len(context), -1, -1)
    return pool_slots(context, mixer.slot_grid)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode, and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
