"""Parameters of one number have shape (1,): FSDP refuses those without a dimension."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def accept_scalars(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give numbers of a checkpoint the dimension that the module's own parameters have.

    A hook for ``register_load_state_dict_pre_hook``.
    """
    for name, parameter in module.named_parameters(recurse=False):
        value = state_dict.get(f"{prefix}{name}")
        if isinstance(value, Tensor) and value.dim() == 0 and parameter.shape == (1,):
            state_dict[f"{prefix}{name}"] = value.reshape(1)
