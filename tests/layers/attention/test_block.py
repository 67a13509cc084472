from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from convattn.layers import AttentionBlock
from tests.layers.properties import LayerProperties, randomise


def _formula(block: AttentionBlock, x: Tensor) -> Tensor:
    """The block step by step, with torch's own multi-head attention."""
    if block.pos_embed is not None:
        x = x + block.pos_embed(x)
    mha = nn.MultiheadAttention(block.dim, block.attn.num_heads, batch_first=True, dtype=x.dtype)
    names = {"qkv.": "in_proj_", "proj.": "out_proj."}
    mha.load_state_dict(
        {
            next(new + k.removeprefix(old) for old, new in names.items() if k.startswith(old)): v
            for k, v in block.attn.state_dict().items()
        }
    )
    tokens = block.norm1(x).flatten(2).mT
    mixed = mha(tokens, tokens, tokens, need_weights=False)[0].mT.reshape(x.shape)
    x = x + block.ls1(mixed)
    z = block.mlp.fc1(block.norm2(x))
    if block.mlp.dwconv is not None:
        z = z + block.mlp.dwconv(z)
    return x + block.ls2(block.mlp.fc2(F.gelu(z)))


class TestAttentionBlock(LayerProperties):
    def build(self, backend: str = "auto") -> AttentionBlock:
        return AttentionBlock(16, head_dim=8, mlp_dwconv=True, layer_scale=0.5)

    def reference(self, x: Tensor) -> Tensor:
        return _formula(randomise(self.build()).to(x.dtype), x)


class TestPlainAttentionBlock(TestAttentionBlock):
    def build(self, backend: str = "auto") -> AttentionBlock:
        return AttentionBlock(16, num_heads=4, pos_embed=False, mlp_ratio=2)


def test_the_names_of_the_state_dict_are_frozen():
    block = AttentionBlock(32, mlp_dwconv=True, layer_scale=1e-4)
    modules = ["pos_embed", "norm1", "attn.qkv", "attn.proj", "norm2"]
    modules += ["mlp.fc1", "mlp.dwconv", "mlp.fc2"]
    names = {f"{m}.{leaf}" for m in modules for leaf in ("weight", "bias")}
    assert set(block.state_dict()) == names | {"ls1.gamma", "ls2.gamma"}


@pytest.mark.parametrize("name", ["norm1", "norm2"])
def test_norms_add_a_millionth_to_the_variance(name):
    assert AttentionBlock(32).get_submodule(name).eps == 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 20}, "got dim=32, head_dim=20; the nearest head_dim that fits is 16"),
        ({"num_heads": 5}, "got dim=32, num_heads=5; the nearest num_heads that fits is 4"),
        ({"mlp_ratio": -1}, "mlp_ratio must be positive, got -1"),
        ({"drop_path": 1}, "drop_path must be at least 0 and less than 1, got 1"),
    ],
)
def test_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttentionBlock(32, **arguments)


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="heads"):
        AttentionBlock(32, heads=4)  # type: ignore[call-arg]
