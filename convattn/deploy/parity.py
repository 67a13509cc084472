"""Compare the outputs of a model and of its deployed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from convattn.deploy.reparameterize import reparameterize


@torch.inference_mode()
def parity(
    model: nn.Module, *inputs: Any, deployed: nn.Module | None = None, batch_size: int = 2
) -> float:
    """Return the largest relative difference between the outputs of a model and its deployed form.

    ``max |deployed(x) - model(x)| / max |model(x)|``, the maximum over all outputs. It is about
    1e-14 in float64 and 1e-6 in float32; in half precision it has the size of the rounding error.
    It is NaN if an output contains a NaN.

    Args:
        model: The model; it is called in evaluation mode, and its mode is restored.
        *inputs: The inputs of the model. By default, normal noise of the size in
            ``model.pretrained_cfg``.
        deployed: The deployed form; None to build it from a copy of the model.
        batch_size: The batch size of the noise.

    Raises:
        ValueError: There are no inputs and the model has no ``pretrained_cfg``, or the outputs
            differ in number or shape.
    """
    deployed = reparameterize(model) if deployed is None else deployed
    inputs = inputs or (_noise(model, batch_size),)
    given, ours = _outputs(model, inputs), _outputs(deployed, inputs)
    if len(given) != len(ours):
        raise ValueError(
            f"the model returns {len(given)} tensors and its deployed form {len(ours)}: parity "
            "requires a model that always returns the same number of tensors"
        )
    differences = [_difference(*pair) for pair in zip(given, ours, strict=True)]
    return (
        torch.tensor(differences, dtype=torch.float64).max().item()
    )  # Python's max() may lose a NaN


def _difference(given: Tensor, deployed: Tensor) -> float:
    if given.shape != deployed.shape:
        raise ValueError(
            f"the outputs have shapes {tuple(given.shape)} and {tuple(deployed.shape)}: parity "
            "requires a model that always returns the same shapes"
        )
    if given.numel() == 0:
        return 0.0
    given, deployed = given.double(), deployed.double()
    largest = (deployed - given).abs().max()
    return 0.0 if largest == 0 else (largest / given.abs().max()).item()


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    modes = {module: module.training for module in model.modules()}
    try:
        leaves = tree_leaves(model.eval()(*inputs))
    finally:
        for module, mode in modes.items():
            module.training = mode
    outputs = [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
    if not outputs:
        raise ValueError(f"{type(model).__name__} returns no floating-point tensor to compare")
    return outputs


def _noise(model: nn.Module, batch_size: int) -> Tensor:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    size = cfg.get("input_size")
    if size is None:
        raise ValueError(
            f"{type(model).__name__} has no pretrained_cfg with the image size: pass inputs, as in "
            "parity(model, torch.randn(1, 3, 224, 224))"
        )
    channels = getattr(model, "in_chans", size[0])
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch_size, channels, *size[1:], generator=generator)
    return noise.to(device=like.device, dtype=like.dtype)
