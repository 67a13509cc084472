"""Scripted code calls the operators by name, and a saved script finds them again."""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convattn.ops
from convattn.ops import (
    acmix_convolution,
    convolution_path,
    dispatch,
    folded_convolution,
    global_attention,
    kmeans_clustering,
    map_convolution,
    patchwise_aggregate,
    pixel_shift_attention,
    pool_slots,
    shift_convolution,
    sliding_window_attention,
    soft_clustering,
    window_attention,
)
from tests.compare import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


class Attentions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = sliding_window_attention(x, x, x, num_heads=2, window_size=3, dilation=2)
        y = y + window_attention(x, x, x, num_heads=2, window_size=3, shift=(1, 0))
        y = y + global_attention(x, x, x, num_heads=4, scale=0.3)
        y = y + pixel_shift_attention(x, x, x, num_heads=2)
        weights = x[:, :2, None].expand(-1, -1, 9, -1, -1)
        return y + patchwise_aggregate(weights, x, kernel_size=3)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Parameter(torch.randn(9, 6))
        self.bias = nn.Parameter(torch.randn(9))
        self.kernels = nn.Parameter(torch.randn(8, 9, 3, 3))
        self.folded = nn.Parameter(torch.randn(8, 7, 3, 3))
        self.projection = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.offset = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        y = acmix_convolution(
            x, x, x, self.fc, self.kernels, head_dim=4, fc_bias=self.bias, stride=2
        )
        y = y + folded_convolution(x, x, x, self.folded, head_dim=4, stride=2)
        if convolution_path(x, head_dim=4, out_chans=8) == "dense":
            w = self.projection
            y = y + map_convolution(
                x, [w, w, w], [None, self.offset, None], self.fc, self.kernels, head_dim=4, stride=2
            )
        return y + shift_convolution(x, x, x, self.fc, head_dim=4, num_outputs=2, stride=2)


class Slots(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grid = (2, 3)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        pooled = pool_slots(x, self.grid)
        slots = soft_clustering(pooled, x, self.scale) + kmeans_clustering(pooled, x, 2)
        return dispatch(pooled, slots, x, self.scale)


@pytest.mark.parametrize("module", [Attentions, Convolutions, Slots])
def test_a_script_gives_values_and_gradients_of_the_functions(module):
    torch.manual_seed(0)
    eager = module()
    scripted = torch.jit.script(eager)
    stored = io.BytesIO()
    torch.jit.save(scripted, stored)
    stored.seek(0)
    for other in (scripted, torch.jit.load(stored)):
        for size in [(7, 9), (12, 5)]:
            x, y = (torch.randn(2, 8, *size).requires_grad_() for _ in range(2))
            y.data.copy_(x.data)
            assert_close(other(x), eager(y), torch.float32)
            other(x).square().sum().backward()
            eager(y).square().sum().backward()
            assert_close(x.grad, y.grad, torch.float32)


class WithCheck(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return global_attention(x, x, x, num_heads=3)


def test_a_script_tells_the_same_errors():
    with pytest.raises(RuntimeError, match="must be a multiple of num_heads"):
        torch.jit.script(WithCheck())(torch.randn(1, 8, 4, 4))


SCHEMAS: dict[str, Any] = {
    schema.name.removeprefix("convattn::"): schema
    for schema in torch._C._jit_get_all_schemas()
    if schema.name.startswith("convattn::")
}


def function_called(name: str) -> Any:
    modules = [
        importlib.import_module(f"convattn.ops.{module.name}")
        for module in pkgutil.iter_modules(convattn.ops.__path__)
    ]
    return next(getattr(module, name) for module in modules if hasattr(module, name))


NOT_IN_SCRIPTS = {
    "use_backend",  # a context of eager code
    "cluster_and_dispatch",  # a schema has no callables: GLMix in a script calls the two apart
}


def test_every_function_of_the_package_can_be_called_in_scripts():
    functions = {name for name, f in vars(convattn.ops).items() if inspect.isfunction(f)}
    assert functions - set(SCHEMAS) == NOT_IN_SCRIPTS


@pytest.mark.parametrize("name", SCHEMAS)
def test_scripts_see_the_arguments_and_defaults_of_the_function(name):
    ours = inspect.signature(function_called(name)).parameters.values()
    script = [
        (
            a.name,
            a.kwarg_only,
            a.default_value if a.has_default_value() else inspect.Parameter.empty,
        )
        for a in SCHEMAS[name].arguments
    ]
    # a schema writes one number for a pair of equal ones
    script = [(n, only, 0 if default == [0, 0] else default) for n, only, default in script]
    assert script == [(p.name, p.kind is p.KEYWORD_ONLY, p.default) for p in ours]
