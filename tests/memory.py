"""What a computation keeps in memory, counted rather than timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convattn.bench.memory import peak_memory as peak_memory


class LargestTensor(TorchDispatchMode):
    """Records the largest memory, in bytes, that any operation inside returned."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.bytes = max(self.bytes, *sizes, 0)
        return result


def largest_tensor(function: Callable[[], Tensor]) -> int:
    """Bytes of the largest memory returned by an operation, forward and backward."""
    with LargestTensor() as largest:
        function().sum().backward()
    return largest.bytes


def saved_for_backward(function: Callable[[], Tensor]) -> int:
    """Bytes that the graph of the result keeps alive, memory that views share counted once."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = function()
    assert result.requires_grad
    return sum(storages.values())
