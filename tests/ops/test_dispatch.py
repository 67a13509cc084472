"""The dispatcher, on an operator made for it; `test_paths.py` has the package's own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from convattn import ops
from convattn.ops.dispatch import OPERATORS, Call, Operator, Path, checkpoint_contexts


@dataclass
class Doubling(Call):
    """``2 x + offset``."""

    x: Tensor
    offset: Tensor | None
    rounds: int


def _add(x: Tensor, offset: Tensor | None, *, rounds: int) -> Tensor:
    y = x + x
    return y if offset is None else y + offset


def _shift(x: Tensor, offset: Tensor | None, *, rounds: int) -> Tensor:
    return x + x + 10  # wrong, so that the tests see which path ran


def _multiply(x: Tensor, offset: Tensor | None, *, rounds: int) -> Tensor:
    return 2 * x + 100


def _no_offset(call: Doubling) -> str | None:
    return "it adds no offset" if call.offset is not None else None


@pytest.fixture
def operator() -> Iterator[Operator[Doubling]]:
    yield Operator(
        "doubling",
        Path("reference", _add, "the formula"),
        Path("shift", _shift, "rounds cost nothing", _no_offset, lambda call: call.rounds > 1),
        Path("multiply", _multiply, "one multiplication", _no_offset),
    )
    del OPERATORS["doubling"]


def _call(*, offset: bool = False, rounds: int = 1) -> Doubling:
    return Doubling(torch.ones(2, 3), torch.ones(3) if offset else None, rounds)


def test_auto_takes_the_first_path_that_prefers_the_call_and_does_not_refuse_it(operator):
    assert operator.choose(_call(rounds=2)).name == "shift"
    assert operator.choose(_call()).name == "multiply"
    assert operator.choose(_call(offset=True)).name == "reference"
    assert torch.equal(operator(_call(offset=True)), torch.full((2, 3), 3.0))


def test_a_named_path_runs_though_it_is_not_preferred(operator):
    assert operator.choose(_call(), "shift").name == "shift"


def test_a_named_path_that_refuses_raises_its_sentence(operator):
    message = "'shift' cannot compute this call of doubling: it adds no offset; use backend='auto'"
    with pytest.raises(ValueError, match=message):
        operator(_call(offset=True), "shift")


def test_unknown_paths_are_refused(operator):
    with pytest.raises(ValueError, match="unknown backend 'multipy'; did you mean 'multiply'"):
        operator(_call(), "multipy")
    with (
        pytest.raises(ValueError, match="unknown backend 'tilde'; did you mean 'tiled'"),
        ops.use_backend("tilde"),
    ):
        pass


def test_use_backend_decides_for_auto_alone_and_ends_with_its_block(operator):
    with ops.use_backend("reference"):
        assert operator.choose(_call()).name == "reference"
        assert operator.choose(_call(), "shift").name == "shift"
        with ops.use_backend("auto"):
            assert operator.choose(_call()).name == "multiply"
        with ops.use_backend("strips"):  # a path that this operator lacks
            assert operator.choose(_call()).name == "multiply"
        assert operator.choose(_call()).name == "reference"
    with pytest.raises(RuntimeError), ops.use_backend("reference"):
        raise RuntimeError
    assert operator.choose(_call()).name == "multiply"


def test_use_backend_leaves_calls_alone_that_its_path_refuses(operator):
    with ops.use_backend("shift"):
        assert operator.choose(_call()).name == "shift"
        assert operator.choose(_call(offset=True)).name == "reference"
        choice = operator.explain(_call(offset=True))
    assert choice.others["shift"] == "it cannot: it adds no offset"


def test_threads_do_not_see_each_others_backend(operator):
    seen = []
    with ops.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(operator.choose(_call()).name))
        thread.start()
        thread.join()
    assert seen == ["multiply"]


def test_a_forward_pass_that_is_computed_again_takes_the_paths_of_the_first(operator):
    x = torch.ones(2, 3, requires_grad=True)

    def double(x: Tensor) -> Tensor:
        return operator(Doubling(x, None, 1)).exp()

    with ops.record_paths() as taken:
        with ops.use_backend("shift"):
            y = checkpoint(double, x, use_reentrant=False, context_fn=checkpoint_contexts)
        for _ in range(2):
            y.sum().backward(retain_graph=True)
    assert [choice.path for choice in taken] == ["shift"] * len(taken)
    assert len(taken) == 3


def test_a_call_is_described_by_its_tensors():
    x = torch.zeros(2, 3, 5, 7, dtype=torch.bfloat16)
    weight = torch.zeros(3, requires_grad=True)
    call = Doubling(x, weight, 1)
    assert (call.device, call.dtype, call.grad) == ("cpu", torch.bfloat16, True)
    assert call.options == {"rounds": 1}
    assert not call.alike
    assert call.plain
    assert not Doubling(x, None, 1).grad
    with torch.no_grad():
        assert not call.grad
    assert not Doubling(x, weight.to("meta"), 1).plain
    assert Doubling(x, weight.to("meta"), 1).devices == "cpu and meta"
    assert not Doubling(x.as_subclass(_Subclass), None, 1).plain


class _Subclass(Tensor):
    pass


def test_a_choice_without_tensors_compares_sizes(operator):
    @dataclass
    class Fold(Call):
        groups: int

    fold: Operator[Fold] = Operator(
        "fold",
        Path("reference", lambda groups: "layers"),
        Path("one", lambda groups: "one layer", "less work", prefers=lambda call: call.groups < 4),
    )
    assert [fold(Fold(n)) for n in (3, 4)] == ["one layer", "layers"]
    with ops.use_backend("reference"):
        assert fold(Fold(3)) == "one layer"
    assert "fold (groups=4) takes 'reference'" in str(fold.explain(Fold(4)))
    del OPERATORS["fold"]


def test_explain_says_what_runs_and_why_not_the_others():
    q = torch.zeros(1, 8, 20, 20)
    choice = ops.explain(
        ops.sliding_window_attention, q, q, q, num_heads=2, window_size=41, backend="auto"
    )
    assert choice.operator == "sliding_window_attention"
    assert choice.path == "dense"
    assert "has windows of up to 32 pixels" in choice.others["native"]
    assert choice.others["tiled"] == "it comes after 'dense' in the order of the paths"
    assert "(cpu, float32, (1, 8, 20, 20)) takes 'dense'" in str(choice)
    assert "not 'native': it cannot: it has windows" in str(choice)


def test_explain_needs_an_operator():
    with pytest.raises(TypeError, match="relu calls no operator that has paths"):
        ops.explain(torch.relu, torch.zeros(1))
    q = torch.zeros(1, 8, 4, 4)
    with pytest.raises(ValueError, match="num_heads"):
        ops.explain(ops.sliding_window_attention, q, q, q, num_heads=3)


def test_record_paths_lists_every_choice_in_order():
    q = torch.zeros(1, 8, 6, 6)
    with ops.record_paths() as taken:
        ops.global_attention(q, q, q, num_heads=2)
        ops.sliding_window_attention(q, q, q, num_heads=2, backend="tiled")
    ops.global_attention(q, q, q, num_heads=2)
    assert [(c.operator, c.path) for c in taken] == [
        ("global_attention", "sdpa"),
        ("sliding_window_attention", "tiled"),
    ]
    assert taken[1].because == "the argument backend names this path"


def test_a_variable_writes_each_choice_once():
    program = (
        "import torch; from convattn import ops; q = torch.zeros(1, 8, 6, 6)\n"
        "for _ in range(2): ops.global_attention(q, q, q, num_heads=2)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CONVATTN_LOG": "paths"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = found.stderr.splitlines()
    assert lines[0].startswith("global_attention (cpu, float32, (1, 8, 6, 6)) takes 'sdpa': ")
    assert len([line for line in lines if "takes" in line]) == 1


@pytest.mark.slow
def test_compiled_code_heeds_the_backend(operator):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: operator(Doubling(x, None, 1)), fullgraph=True, backend="eager"
    )
    x = torch.ones(2, 3)
    for name, offset in (("auto", 100), ("reference", 0), ("shift", 10), ("auto", 100)):
        with ops.use_backend(name):
            assert torch.equal(compiled(x), 2 * x + offset)


def test_explain_names_who_named_the_path(operator):
    choice = operator.explain(_call(), "reference")
    assert choice.because == "the argument backend names this path"
    assert choice.others["multiply"] == "it can, but 'reference' is named"
    with ops.use_backend("reference"):
        assert operator.explain(_call()).because == "use_backend names this path"


def test_explain_passes_through_handlers_of_errors(operator):
    def handle() -> None:
        try:
            operator(_call())
        except Exception:
            raise AssertionError("explain ends the call") from None

    assert ops.explain(handle).path == "multiply"


def test_records_of_paths_nest(operator):
    with ops.record_paths() as outer:
        operator(_call())
        with ops.record_paths() as inner:
            operator(_call(offset=True))
    assert [choice.path for choice in outer] == ["multiply", "reference"]
    assert [choice.path for choice in inner] == ["reference"]
