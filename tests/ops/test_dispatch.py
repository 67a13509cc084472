from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch

import convattn.models  # noqa: F401
from convattn import ops
from convattn.ops.acmix import convolution as acmix
from convattn.ops.convolution import gelu as _fused_conv
from convattn.ops.dispatch import PATHS, Case, choose, describe, exporting, resolve
from convattn.ops.glmix import slots as glmix
from convattn.ops.kernels.native import library
from convattn.ops.patchwise import aggregate as patchwise
from convattn.ops.sliding import attention
from convattn.ops.tokens import linear as _linear
from convattn.ops.windows import attention as windows
from convattn.ops.xvolution import pixel_shift as xvolution


def test_the_callers_word_is_final():
    with ops.use_backend("reference"):
        assert resolve("tiled", ("tiled", "reference")) == "tiled"


def test_the_override_decides_for_auto_where_it_can():
    with ops.use_backend("reference"):
        assert resolve("auto", ("tiled", "reference")) == "reference"
        assert resolve("auto", ("tiled", "dense")) == "auto"
        with ops.use_backend("auto"):
            assert resolve("auto", ("tiled", "reference")) == "auto"
        assert resolve("auto", ("tiled", "reference")) == "reference"
    assert resolve("auto", ("tiled", "reference")) == "auto"


def test_the_override_ends_with_an_error():
    with pytest.raises(RuntimeError), ops.use_backend("reference"):
        raise RuntimeError
    assert resolve("auto", ("reference",)) == "auto"


def test_unknown_paths_are_refused():
    with pytest.raises(ValueError, match="unknown backend 'referense'; did you mean 'reference'"):
        resolve("referense", ("tiled", "reference"))
    with (
        pytest.raises(ValueError, match="unknown backend 'tilde'; did you mean 'tiled'"),
        ops.use_backend("tilde"),
    ):
        pass


def test_every_path_of_an_operator_can_be_the_override():
    modules = (acmix, attention, glmix, xvolution, windows, patchwise)
    choices = {
        path
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("BACKENDS")
        for path in value
    }
    assert choices | {"triton"} == set(PATHS)


def _kernels_of(model: torch.nn.Module, x: torch.Tensor) -> set[str]:
    """Return which kernels a model calls by address, and which paths without names it takes."""
    seen = set()

    def recorded(call: Any, name: str = "") -> Any:
        def watched(*args: Any) -> Any:
            result = call(*args)
            seen.add(name or result)
            return result

        return watched

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(torch, "get_num_threads", lambda: 2)
        for name in ("rows", "heads"):
            module = f"convattn.ops.kernels.native.{name}"
            patch.setattr(f"{module}.kernels", recorded(library.kernels, name))
        for module in (_fused_conv, _linear):
            patch.setattr(module, "choose", recorded(choose))
        model(x)
    return seen


@pytest.mark.skipif(
    not (library.available() and _fused_conv.has_kernel(torch.float32)),
    reason="no C compiler, or no oneDNN",
)
def test_a_model_on_the_references_calls_no_kernel():
    model = timm.create_model("glnet_nano").eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    for name in ("auto", "native"):
        with ops.use_backend(name):
            assert _kernels_of(model, x) == {"rows", "heads", "onednn", "conv"}
    with ops.use_backend("reference"):
        assert _kernels_of(model, x) == {"aten"}


CASE = Case(device="cpu", dtype=torch.float32, height=7, width=9)


def test_the_first_rule_that_fits_decides():
    rules = (
        ("tiled", lambda case: case.device == "cuda", ""),
        ("dense", lambda case: case.height < 8, ""),
        ("sdpa", lambda case: True, ""),
    )
    assert choose(rules, CASE) == "dense"
    assert choose(rules[:1] + rules[2:], CASE) == "sdpa"
    with pytest.raises(AssertionError, match="the last rule fits always"):
        choose(rules[:1], CASE)


def test_every_table_ends_with_a_rule_for_the_rest_and_names_paths():
    tables = {
        f"{module.__name__}.{name}": value
        for module in (attention, glmix, xvolution)
        for name, value in vars(module).items()
        if name.endswith("RULES")
    }
    assert "convattn.ops.sliding.attention.SLIDING_RULES" in tables
    for name, rules in tables.items():
        assert all(path in PATHS and why for path, _, why in rules), name
        assert all(rules[-1][1](case) for case in (CASE, replace(CASE, device="cuda"))), name


def test_a_case_is_described_by_the_tensors():
    x, weight = torch.zeros(2, 3, 5, 7, dtype=torch.bfloat16), torch.zeros(3, requires_grad=True)
    case = describe(x, weight, stride=2, window=3)
    assert case == Case("cpu", torch.bfloat16, 5, 7, stride=2, window=3, grad=True)
    assert not describe(x).grad
    with torch.no_grad():
        assert not describe(x, weight).grad


def test_a_case_says_whether_a_transform_looks_into_it():
    x, cases = torch.zeros(2, 3, 5, 7), []

    def look(x: torch.Tensor) -> torch.Tensor:
        cases.append(describe(x))
        return x.sum()

    torch.func.grad(look)(x)
    with torch.autograd.forward_ad.dual_level():
        look(x)
    look(x)
    assert [case.transformed for case in cases] == [True, True, False]


def test_a_case_says_whether_the_model_is_exported():
    class Asks(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if exporting() else x - 1

    x = torch.zeros(2)
    assert not exporting()
    assert torch.export.export(Asks(), (x,)).module()(x).tolist() == [1, 1]
    assert torch.compile(Asks(), fullgraph=True, backend="eager")(x).tolist() == [-1, -1]


@pytest.mark.slow
def test_a_compiled_operator_follows_the_override():
    q = torch.randn(1, 4, 6, 6)

    def attend(q: torch.Tensor) -> torch.Tensor:
        return ops.sliding_window_attention(q, q, q, num_heads=2, window_size=3)

    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q), attend(q))
    with ops.use_backend("reference"):
        torch.testing.assert_close(compiled(q), attend(q))
