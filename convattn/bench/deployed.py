"""The deployed form of both sides of a comparison, checked against the original model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm.models.convnext
import torch
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.fx import GraphModule, Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convattn.deploy import reparameterize

MAX_DIFFERENCE = 1e-8  # relative, of the outputs in float64; rounding gives less


def deploy(model: nn.Module, example: Tensor, *, ours: bool) -> nn.Module:
    """Return the folded model in evaluation mode, after a comparison of its outputs.

    `convattn.reparameterize` folds models of this package, as a user would do. In other models
    timm's own folding is applied, batch norms are folded into convolutions, and ConvNeXt's layer
    scales into linear layers.

    Args:
        model: a model on the CPU; it is converted to float64 and otherwise not changed.
        example: images on which the outputs are compared.
        ours: whether the model belongs to this package.

    Returns:
        The folded model in float64, so that a conversion rounds its weights only once.

    Raises:
        RuntimeError: the outputs of the folded model differ.
    """
    model = model.double().eval()
    folded = reparameterize(model) if ours else fold_peer(model)
    if not ours and _same_weights(model, folded):
        return folded  # nothing was folded
    with torch.inference_mode():
        before, after = model(example.double()), folded(example.double())
    difference = float((after - before).norm() / before.norm())
    if not difference < MAX_DIFFERENCE:  # also if it is NaN
        raise RuntimeError(
            f"the outputs of the folded {type(model).__name__} are not those of the model: the "
            f"relative difference is {difference:.1e}, with rounding less than {MAX_DIFFERENCE:.0e}"
        )
    return folded


def fold_peer(model: nn.Module) -> nn.Module:
    """Return a folded copy of a network that does not belong to this package."""
    folded = reparameterize_model(model.eval())
    _fold_layer_scales(folded)
    _fold_norms(folded)
    return folded


def count_norms(model: nn.Module) -> int:
    """Return the number of batch norms."""
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


@torch.no_grad()
def randomize(model: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """Give norms, layer scales and zero weights of a new network random values.

    With their initial values many of these have no effect, and a wrong folding would not change the
    outputs. The statistics of batch norms are those of ``images``: with other statistics the
    activations of a deep network overflow.

    Args:
        model: changed in place, and set to evaluation mode.
        images: (B, C, H, W), B at least 2.
        seed: the seed of the random values.
    """
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor: Tensor, low: float, high: float) -> None:
        values = torch.rand(tensor.shape, generator=generator).to(tensor)
        tensor.copy_(low + (high - low) * values)

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        if norm.affine:
            fill(norm.weight, 0.8, 1.2)
            fill(norm.bias, -0.2, 0.2)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2].startswith("gamma"):
            fill(parameter, 0.5, 1.0)
        elif parameter.dim() > 1 and not parameter.any():  # a classifier that starts at zero
            fill(parameter, -0.05, 0.05)
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model.eval()


@torch.no_grad()
def _fold_layer_scales(model: nn.Module) -> None:
    """Fold each layer scale of a ConvNeXt into the linear layer before it."""
    for block in model.modules():
        if isinstance(block, timm.models.convnext.ConvNeXtBlock) and block.gamma is not None:
            last: Any = block.mlp.fc2
            last.weight.mul_(block.gamma.view(-1, *[1] * (last.weight.dim() - 1)))
            if last.bias is not None:
                last.bias.mul_(block.gamma)
            block.gamma = None


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class _Shallow(Tracer):
    """A tracer that keeps a batch norm as one node, also timm's with an activation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)


def _fold_norms(model: nn.Module) -> None:
    """Fold every batch norm that is the only user of a convolution's output.

    Tracing only finds these pairs; the model keeps its own ``forward``. If a network cannot be
    traced, its norms are not folded.
    """
    if not count_norms(model):
        return
    try:
        graph = GraphModule(model, _Shallow().trace(model)).graph
    except Exception:  # tracing runs the model's code, which may raise any error
        return
    modules = dict(model.named_modules())
    used = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    for conv_node, node in _pairs(graph):
        conv, norm = modules[str(conv_node.target)], modules[str(node.target)]
        once = used.count(str(conv_node.target)) == used.count(str(node.target)) == 1
        if not once or not isinstance(conv, nn.Conv2d) or not isinstance(norm, _BatchNorm):
            continue
        if norm.running_mean is None:
            continue
        _set(model, str(conv_node.target), fuse_conv_bn_eval(conv, norm))
        _set(model, str(node.target), _after(norm))


def _pairs(graph: Any) -> list[tuple[Any, Any]]:
    """Return the nodes of two modules where the second is the only user of the first."""
    return [
        (node.args[0], node)
        for node in graph.nodes
        if node.op == "call_module"
        and node.args
        and getattr(node.args[0], "op", "") == "call_module"
        and len(node.args[0].users) == 1
    ]


def _after(norm: _BatchNorm) -> nn.Module:
    """Return the dropout and the activation of timm's norm, or an identity."""
    if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return nn.Identity()
    rest: list[Callable[..., Any]] = [getattr(norm, n) for n in ("drop", "act") if hasattr(norm, n)]
    return nn.Sequential(*(m for m in rest if isinstance(m, nn.Module)))


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
