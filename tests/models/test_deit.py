from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import convattn
from convattn.layers import GlobalAttention
from convattn.models.deit import VARIANTS
from tests.compare import assert_close

PARAMETERS = {"tiny": 5_717_416, "small": 22_050_664}


def _timm_deit(**arguments: Any) -> Any:
    """Return timm's DeiT with random weights, so that every part changes the output."""
    torch.manual_seed(3)
    model: Any = timm.create_model("deit_tiny_patch16_224", depth=3, **arguments).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def _like(theirs: nn.Module, **arguments: Any) -> Any:
    ours = convattn.create_model("acmix_deit_tiny_attn", depth=3, **arguments).eval()
    convattn.load_official(ours, theirs.state_dict())
    return ours


@pytest.mark.parametrize("size", [(224, 224), (96, 160), (240, 224)])
def test_attention_alone_computes_what_timms_deit_computes(size):
    theirs = _timm_deit(dynamic_img_size=True)
    x = torch.randn(2, 3, *size)
    assert_close(_like(theirs)(x), theirs(x), torch.float32)


def test_features_are_those_of_timms_deit():
    theirs = _timm_deit()
    ours, x = _like(theirs), torch.randn(1, 3, 224, 224)
    final, maps = ours.forward_intermediates(x)
    their_final, their_maps = theirs.forward_intermediates(x)
    assert_close(final[..., 0].transpose(1, 2), their_final, torch.float32)
    for our_map, their_map in zip(maps, their_maps, strict=True):
        assert_close(our_map, their_map, torch.float32)


@pytest.mark.parametrize("norm", [False, True])
def test_prefix_tokens_are_those_of_timms_deit(norm):
    theirs = _timm_deit()
    ours, x = _like(theirs), torch.randn(2, 3, 224, 224)
    named: Any = {"intermediates_only": True, "return_prefix_tokens": True}
    # timm norms the tokens of every block; this package norms the last map and its token alone
    found = ours.forward_intermediates(x, [-1] if norm else None, norm=norm, **named)
    expected = theirs.forward_intermediates(x, [2] if norm else None, norm=norm, **named)
    assert len(found) == (1 if norm else 3)
    for pair, their_pair in zip(found, expected, strict=True):
        assert_close(pair, their_pair, torch.float32)


def test_pooled_positions_are_those_of_timms_deit():
    theirs = _timm_deit(global_pool="avg", fc_norm=False)
    x = torch.randn(2, 3, 224, 224)
    assert_close(_like(theirs, global_pool="avg")(x), theirs(x), torch.float32)


@pytest.mark.parametrize(("size", "count"), PARAMETERS.items())
def test_has_the_published_number_of_parameters(size, count):
    theirs: Any = timm.create_model(f"deit_{size}_patch16_224", device="meta")
    assert sum(p.numel() for p in theirs.parameters()) == count
    assert convattn.models.count_parameters(f"acmix_deit_{size}_attn") == count
    config = VARIANTS[f"acmix_deit_{size}"]
    # fc, the group convolution, alpha and beta
    more = 12 * (9 * (3 * config.num_heads + 1) + 81 * config.embed_dim + 2)
    assert convattn.models.count_parameters(f"acmix_deit_{size}") == count + more


def test_every_variant_is_registered():
    assert convattn.list_models("*deit*") == sorted(VARIANTS)
    sizes = ("tiny", "small", "nano")
    assert set(VARIANTS) == {
        f"acmix_deit_{size}{path}" for size in sizes for path in ("", "_conv", "_attn")
    }


def test_every_block_has_acmix_with_global_attention():
    model: Any = convattn.create_model("acmix_deit_small", device="meta")
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert len(blocks) == 12
    for block in blocks:
        mixer = block.mixer
        assert isinstance(mixer.attn, GlobalAttention)
        assert isinstance(mixer.attn.proj, nn.Conv2d)
        assert (mixer.attn.num_heads, mixer.kernel_size) == (6, 3)
        assert mixer.dep_conv is not None
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_gives_a_map_after_every_block_of_features_the_last_three():
    model: Any = convattn.create_model("acmix_deit_tiny", device="meta")
    assert [info["reduction"] for info in model.feature_info] == [16] * 12
    extractor: Any = convattn.create_model("acmix_deit_tiny", features_only=True, device="meta")
    assert extractor.feature_info.out_indices == (9, 10, 11)
    assert [m.shape for m in extractor(torch.empty(1, 3, 64, 96, device="meta"))] == (
        3 * [(1, 192, 4, 6)]
    )


def test_pixels_that_do_not_fill_a_patch_have_no_effect(build):
    model, x = build("acmix_deit_nano", num_classes=3), torch.randn(1, 3, 47, 79)
    assert torch.equal(model(x), model(x[:, :, :32, :64]))


@pytest.mark.parametrize(
    "change",
    [
        {"mix": "sum"},
        {"mix": "convolution"},
        {"shift": "random"},
        {"kernel_size": 5},
        {"mlp_ratio": 2.0},
        {"img_size": 64},
        {"depth": 5},
    ],
    ids=str,
)
def test_each_ablation_is_a_keyword_and_changes_the_output(build, change):
    x = torch.randn(1, 3, 64, 96)
    out = build("acmix_deit_nano", num_classes=4, **change)(x)
    assert out.shape == (1, 4)
    assert not torch.allclose(out, build("acmix_deit_nano", num_classes=4)(x), atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "the nearest num_heads that fits is"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"output_stride": 32}, "DeiT has output stride 16 only, got output_stride=32"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive, got 0.0"),
        ({"mix": "both"}, "unknown mix 'both'"),
        ({"img_size": 15}, "img_size must be at least 16, got 15"),
    ],
)
def test_errors_name_the_wrong_argument_and_the_right_one(change, message):
    with pytest.raises(ValueError, match=message):
        convattn.create_model("acmix_deit_nano", **change)
