from __future__ import annotations

import pytest
import torch

from convattn import ops
from convattn.ops import acmix, attention, glmix, xvolution
from convattn.ops._backend import PATHS, resolve


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
    modules = (acmix, attention, glmix, xvolution)
    choices = {
        path
        for module in modules
        for name, value in vars(module).items()
        if name.endswith("BACKENDS")
        for path in value
    }
    assert choices == set(PATHS)


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
