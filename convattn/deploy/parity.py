"""How far a deployed form is from the model that it was made of."""

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
    """Return the largest relative difference between what a model and its deployed form give.

    ``max |deployed(x) - model(x)| / max |model(x)|``, of all outputs the largest. In float64 it is
    around 1e-14; in float32 around 1e-6, and in half precision as large as its rounding. It is NaN
    where one of them gives what is no number.

    Args:
        model: Evaluated, then left in the mode that it was in.
        *inputs: What it is called with; without any, normal noise of the size that its
            ``pretrained_cfg`` names.
        deployed: Its deployed form; None to make it, from a copy.
        batch_size: Of the noise.

    Raises:
        ValueError: If there are no inputs and the model does not say its own, or the outputs are
            others in number or size.
    """
    deployed = reparameterize(model) if deployed is None else deployed
    inputs = inputs or (_noise(model, batch_size),)
    given, ours = _outputs(model, inputs), _outputs(deployed, inputs)
    if len(given) != len(ours):
        raise ValueError(
            f"the model returns {len(given)} tensors and its deployed form {len(ours)}: a model "
            "that chooses what it returns cannot be compared so"
        )
    apart = [_difference(*pair) for pair in zip(given, ours, strict=True)]
    return torch.tensor(apart, dtype=torch.float64).max().item()  # Python's max() may lose a NaN


def _difference(given: Tensor, deployed: Tensor) -> float:
    if given.shape != deployed.shape:
        raise ValueError(
            f"the outputs have shapes {tuple(given.shape)} and {tuple(deployed.shape)}: a model "
            "that chooses what it returns cannot be compared so"
        )
    if given.numel() == 0:
        return 0.0
    given, deployed = given.double(), deployed.double()
    apart = (deployed - given).abs().max()
    return 0.0 if apart == 0 else (apart / given.abs().max()).item()


def _outputs(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    modes = {module: module.training for module in model.modules()}
    try:
        leaves = tree_leaves(model.eval()(*inputs))
    finally:
        for module, mode in modes.items():
            module.training = mode
    outputs = [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
    if not outputs:
        raise ValueError(f"{type(model).__name__} returns no tensor of numbers to compare")
    return outputs


def _noise(model: nn.Module, batch_size: int) -> Tensor:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    size = cfg.get("input_size")
    if size is None:
        raise ValueError(
            f"{type(model).__name__} does not say the size of its images: give them, as in "
            "parity(model, torch.randn(1, 3, 224, 224))"
        )
    channels = getattr(model, "in_chans", size[0])
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch_size, channels, *size[1:], generator=generator)
    return noise.to(device=like.device, dtype=like.dtype)
