"""Where the kernels are used, and where PyTorch's own operators are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.profiler import profile
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from convattn import ops
from convattn.ops.kernels.native import library
from convattn.ops.processor import multiplies
from convattn.ops.tokens.heads import attend_heads
from convattn.ops.tokens.layer_norm import add_layer_norm_2d, layer_norm_2d
from tests.calls import Calls
from tests.compare import assert_close

pytestmark = pytest.mark.skipif(not library.available(), reason="no C compiler")
Operator = Callable[[Tensor], Tensor]


def _factors(x: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias = torch.linspace(1, 2, 16, device=x.device, dtype=x.dtype).unflatten(0, (2, 8))
    return weight, bias


def _norm(x: Tensor) -> Tensor:
    return layer_norm_2d(x, (8,), *_factors(x), 1e-6)


def _sum_and_norm(x: Tensor) -> Tensor:
    return torch.cat(add_layer_norm_2d(x, x * 2, (8,), *_factors(x), 1e-6), 1)


def _heads(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return attend_heads(torch.cat([tokens, tokens.flip(1), tokens * 2], 2), 2)


def _windows(x: Tensor) -> Tensor:
    return ops.window_attention(x, x.flip(1), x * 2, num_heads=2, window_size=4, shift=1)


def _map_windows(x: Tensor) -> Tensor:
    weights = torch.eye(8, device=x.device, dtype=x.dtype)[:, :, None, None]
    projections = [weights, weights * 2, weights]
    return ops.map_window_attention(x, projections, [None] * 3, num_heads=2, window_size=3)


def _slots(x: Tensor) -> Tensor:
    slots = x.flatten(2)[:, :, :3].transpose(1, 2)
    return ops.cluster_and_dispatch(slots, x, 2.0, lambda slots: slots * 2)


# The operators in C that each calls.
KERNELS = {
    _norm: {"layer_norm"},
    _sum_and_norm: {"add_layer_norm"},
    _heads: {"attend_tokens"},
    _windows: {"attend_windows"},
    _map_windows: {"attend_windows"},
    _slots: {"directions", "similarities_", "scale_rows_"},
}
OPERATORS = tuple(KERNELS)


@pytest.fixture
def taken() -> Iterator[Callable[[], set[str]]]:
    """The operators in C that this thread called: the profiler is no mode, and changes no path."""
    with ExitStack() as stack:
        profiler = stack.enter_context(profile())

        def taken() -> set[str]:
            stack.close()
            names = {event.name for event in profiler.function_events or ()}
            return {name.split("::")[1] for name in names if name.startswith("convattn::")}

        yield taken


def _map(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 8, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last)


def _as_in_double(operator: Operator, x: Tensor) -> Tensor:
    with torch.no_grad():
        return operator(x.detach().double())


def _inference(operator: Operator, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return operator(x.clone())


def _of_parameters(operator: Operator, x: Tensor) -> Tensor:
    with torch.no_grad():
        return operator(nn.Parameter(x))


def _double_by_default(operator: Operator, x: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64)
    try:
        return operator(x)
    finally:
        torch.set_default_dtype(torch.float32)


def _in_three_threads(operator: Operator, x: Tensor) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 3)
        return operator(x)


def _on_the_cpu_by_default(operator: Operator, x: Tensor) -> Tensor:
    with torch.device("cpu"):
        return operator(x)


def _overridden_by_their_name(operator: Operator, x: Tensor) -> Tensor:
    with ops.use_backend("native"):
        return operator(x)


class _Quiet(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def _under_a_function_mode(operator: Operator, x: Tensor) -> Tensor:
    with _Quiet():
        return operator(x)


def _on_another_device_by_default(operator: Operator, x: Tensor) -> Tensor:
    with torch.device("meta"):
        return operator(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    "how",
    [
        lambda f, x: f(x),
        _inference,
        _of_parameters,
        _double_by_default,
        _in_three_threads,
        _on_the_cpu_by_default,
        _overridden_by_their_name,
        _under_a_function_mode,
        _on_another_device_by_default,
    ],
)
def test_kernels_are_used_without_gradients(how, operator, dtype, taken):
    if operator is _slots and not multiplies(dtype):
        pytest.skip("the fused call is faster on this processor")
    x = _map(dtype)
    with torch.set_grad_enabled(operator is not _slots):
        y = how(operator, x)
    assert taken() == KERNELS[operator]
    assert y.dtype == dtype
    assert_close(y.double(), _as_in_double(operator, x), dtype)


@pytest.mark.parametrize("operator", OPERATORS)
def test_dispatch_modes_see_the_kernels(operator):
    x = _map()
    with torch.no_grad(), Calls() as calls:
        y = operator(x)
    assert KERNELS[operator] <= set(calls.count)
    assert_close(y.double(), _as_in_double(operator, x), torch.float32)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_traced_graph_has_the_kernels_as_nodes(operator):
    x = _map()
    with torch.no_grad():
        graph = make_fx(operator)(x + 1)
    nodes = {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}
    assert {f"convattn.{name}.default" for name in KERNELS[operator]} <= nodes
    with torch.no_grad():
        assert_close(graph(x).double(), _as_in_double(operator, x), torch.float32)


@pytest.mark.parametrize("operator", OPERATORS)
def test_several_threads_may_call_at_once(operator):
    def call(x: Tensor) -> Tensor:
        with torch.no_grad():  # each thread has a mode of its own
            return operator(x)

    x = _map()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(call, [x] * 12))
    assert all(torch.equal(y, call(x)) for y in results)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["(C, H, W)", "cropped", "every second"])
def test_layouts_change_nothing(layout, dtype, operator):
    x = _map(dtype)
    expected = _as_in_double(operator, x)
    if layout == "(C, H, W)":
        x = x.contiguous()
    elif layout == "cropped":
        x = nn.functional.pad(x, (1, 2, 3, 4, 5, 6))[:, 5:-6, 3:-4, 1:-2]
    else:
        x = torch.stack([x, x], -1)[..., 0]
    with torch.no_grad():
        assert_close(operator(x).double(), expected, dtype)


class _Map(Tensor):
    pass


def _differentiated(operator: Operator, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        y = operator(x)
        assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()
    return y.detach()


def _overridden(operator: Operator, x: Tensor) -> Tensor:
    with ops.use_backend("reference"):
        return operator(x)


def _subclassed(operator: Operator, x: Tensor) -> Tensor:
    return operator(x.as_subclass(_Map)).as_subclass(Tensor)


def _traced(operator: Operator, x: Tensor) -> Tensor:
    traced = torch.jit.trace(operator, x + 1, check_trace=False)
    return traced(x)


def _mapped(operator: Operator, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda x: operator(x[None]).squeeze(0))(x)


def _along(operator: Operator, x: Tensor) -> Tensor:
    return torch.func.jvp(operator, (x,), (x,))[0]


def _exported(operator: Operator, x: Tensor) -> Tensor:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return operator(x)

    return torch.export.export(Model(), (x + 1,)).module()(x)


def _compiled(operator: Operator, x: Tensor) -> Tensor:
    torch._dynamo.reset()
    return torch.compile(operator, fullgraph=True, backend="aot_eager")(x)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    "how",
    [
        _differentiated,
        _overridden,
        _subclassed,
        _traced,
        _mapped,
        _along,
        pytest.param(_exported, marks=pytest.mark.slow),
        pytest.param(_compiled, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_exports_transforms_and_gradients_use_operators_of_pytorch(how, operator, taken):
    x = _map()
    with torch.no_grad():
        y = how(operator, x)
    assert not taken()
    assert_close(y.double(), _as_in_double(operator, x), torch.float32)


@pytest.mark.parametrize("operator", [f for f in OPERATORS if f is not _slots])
def test_autocast_keeps_its_rules(operator, taken):
    x = _map()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = operator(x)
    assert not taken()
    assert_close(y.double(), _as_in_double(operator, x), torch.bfloat16)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_types_are_left_to_pytorch(dtype, operator, taken):
    x = _map(dtype)
    with torch.no_grad():
        assert_close(operator(x).double(), _as_in_double(operator, x), dtype)
    assert not taken()


@pytest.mark.parametrize("operator", OPERATORS)
def test_maps_without_numbers_are_not_read(operator, taken):
    mode = FakeTensorMode()
    with torch.no_grad():
        assert operator(_map().to("meta")).is_meta
        with mode:
            fake = _map()
        with mode:
            assert operator(fake).shape == operator(_map()).shape
    assert not taken()


def test_a_map_without_numbers_may_leave_its_mode(taken):
    with FakeTensorMode():
        x = _map()
    with torch.no_grad():
        for y in (_heads(x), ops.window_attention(x, x, x, num_heads=2, window_size=3)):
            assert type(y) is type(x)
    assert not taken()


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_what_lies_on_another_device_is_an_error(which, taken):
    x, tensors = _map(), {"weight": torch.ones(8), "bias": torch.ones(8)}
    tensors[which] = tensors[which].to("meta")
    with torch.no_grad(), pytest.raises(RuntimeError, match="meta"):
        layer_norm_2d(x, (8,), eps=1e-6, **tensors)
    bias = torch.zeros(2, 9, 9, device="meta")
    with torch.no_grad(), pytest.raises(RuntimeError, match="device"):
        ops.window_attention(x, x, x, num_heads=2, window_size=3, shift=1, bias=bias)
    assert not taken()
