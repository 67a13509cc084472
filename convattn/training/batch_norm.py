"""How batch norms behave during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from lightning.pytorch.plugins.layer_sync import LayerSync
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def set_batch_norm(model: nn.Module, mode: str) -> Sequence[nn.Module]:
    """Apply the setting ``batch_norm`` to a model.

    Models with a method ``set_batch_norm``, such as detectors, decide which norms it concerns.

    Args:
        model: the network.
        mode: "train" and "sync" leave the norms as they are. With "eval" they use and keep their
            running statistics; with "frozen" their weights and biases are not trained either.

    Returns:
        The norms that stay in evaluation mode while the rest of the model is in training mode.
    """
    if hasattr(model, "set_batch_norm"):
        cast(Any, model).set_batch_norm("train" if mode == "sync" else mode)
        return []
    if mode not in ("eval", "frozen"):
        return []
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.eval()
        for parameter in norm.parameters() if mode == "frozen" else ():
            parameter.requires_grad_(False)
    return norms


class SyncNorms(LayerSync):
    """Batch norms with the statistics of all devices; norms of timm keep their activations.

    PyTorch's conversion, which Lightning calls, loses the activation of a ``BatchNormAct2d``.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the model with synchronised batch norms."""
        synchronised: nn.Module = convert_sync_batchnorm(model)
        return synchronised

    def revert(self, model: nn.Module) -> nn.Module:
        """Return the model as it is: on one device a synchronised norm is a batch norm."""
        return model
