"""Parameters of one number have shape (1,): FSDP does not support 0-dimensional parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def accept_scalars(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Reshape 0-dimensional entries of a checkpoint to (1,) if the module's parameters are (1,).

    A hook for ``register_load_state_dict_pre_hook``.
    """
    for name, parameter in module.named_parameters(recurse=False):
        value = state_dict.get(f"{prefix}{name}")
        if isinstance(value, Tensor) and value.dim() == 0 and parameter.shape == (1,):
            state_dict[f"{prefix}{name}"] = value.reshape(1)
