from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convattn
from convattn.layers import ACmix, SpatialReductionAttention
from convattn.models.pvt import VARIANTS
from tests.compare import assert_close
from tests.golden import Fixture, relative_error

PARAMETERS = {"pvt_tiny": 13_229_288, "pvt_small": 24_485_864}
MACS = {"pvt_tiny": 1.9, "pvt_small": 3.8, "acmix_pvt_tiny": 2.0, "acmix_pvt_small": 3.9}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
@pytest.mark.parametrize("name", ["pvt_tiny", "acmix_pvt_tiny_attn"])
def test_computes_what_the_published_code_computes(name, dtype, bound, tmp_path):
    golden = Fixture("pvt_tiny")
    torch.save(golden.state(dtype), tmp_path / "published.pth")
    model = convattn.create_model(name, dtype=dtype).eval()
    report = convattn.load_official(model, tmp_path / "published.pth")
    assert report.ignored == ()
    with torch.no_grad():
        assert relative_error(model(golden.images(dtype)), golden.output()) < bound


def test_a_published_file_is_loaded_strictly():
    state = Fixture("pvt_tiny").state(torch.float32)
    model = convattn.create_model("pvt_tiny")
    with pytest.raises(ValueError, match=r"1 unexpected \(stages\.0\.blocks\.0\.extra\)"):
        convattn.load_official(model, {**state, "block1.0.extra": torch.zeros(1)})
    del state["pos_embed4"]
    with pytest.raises(ValueError, match=r"1 missing \(stages\.3\.positions\.pos_embed\)"):
        convattn.load_official(model, state)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_has_the_published_number_of_parameters(name, count):
    assert convattn.models.count_parameters(name) == count
    assert convattn.models.count_parameters(f"acmix_{name}_attn") == count
    # fc, the group convolution, alpha and beta
    more = convattn.models.count_parameters(f"acmix_{name}") - count
    config = VARIANTS[name]
    each = [
        9 * (3 * heads + 1) + 81 * width + 2
        for width, heads in zip(config.embed_dims, config.num_heads, strict=True)
    ]
    assert more == sum(depth * n for depth, n in zip(config.depths, each, strict=True))


@pytest.mark.parametrize(("name", "billions"), MACS.items())
def test_costs_what_the_paper_says(name, billions):
    assert convattn.models.count_macs(name) / 1e9 == pytest.approx(billions, rel=0.05)


def test_every_variant_is_registered():
    assert convattn.list_models("*pvt*") == sorted(VARIANTS)
    assert VARIANTS["pvt_small"] == VARIANTS["acmix_pvt_small_attn"]


def test_stages_are_those_of_the_paper():
    model: Any = convattn.create_model("acmix_pvt_small", device="meta")
    blocks = [list(stage.blocks) for stage in model.stages]
    assert [len(stage) for stage in blocks] == [3, 4, 6, 3]
    for stage, width, heads, reduction, ratio in zip(
        blocks, (64, 128, 320, 512), (1, 2, 5, 8), (8, 4, 2, 1), (8, 8, 4, 4), strict=True
    ):
        for block in stage:
            part = block.mixer.attn
            assert isinstance(part, SpatialReductionAttention)
            assert (block.dim, part.num_heads, part.reduction) == (width, heads, reduction)
            assert block.mlp.fc1.out_channels == ratio * width
            assert isinstance(part.proj, nn.Conv2d)
            assert block.mixer.fc.bias is not None
            assert (block.norm1.eps, block.norm2.eps) == (1e-6, 1e-6)
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for stage in blocks for b in stage]
    assert rates == pytest.approx([0.1 * i / 15 for i in range(16)])


def test_keys_and_values_are_projected_at_the_reduced_resolution(build):
    model = build("acmix_pvt_nano", num_classes=2)
    mixer = model.stages[0].blocks[0].mixer
    seen: dict[str, torch.Size] = {}
    for name in ("q_proj", "k_proj", "v_proj"):
        mixer.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: seen.update({name: out.shape[2:]})
        )
    model(torch.randn(1, 3, 64, 96))
    assert seen == {"q_proj": (16, 24), "k_proj": (2, 3), "v_proj": (2, 3)}


def test_positions_of_every_stage_follow_the_size(build):
    model = build("pvt_nano")
    for i, side in enumerate((8, 4, 2, 1)):
        positions = model.stages[i].positions
        last = i == 3
        dim = positions.pos_embed.shape[2]
        own = positions.pos_embed[:, int(last) :].transpose(1, 2).reshape(1, dim, side, side)
        at_home, token = positions(torch.zeros(1, dim, side, side))
        assert torch.equal(at_home, own)
        elsewhere, same_token = positions(torch.zeros(2, dim, 5, 7))
        expected = F.interpolate(own, (5, 7), mode="bilinear", align_corners=False)
        assert_close(elsewhere[1:], expected, torch.float32)
        assert (token is None) == (not last)
        if last:
            assert torch.equal(token, positions.cls_token + positions.pos_embed[:, :1])
            assert torch.equal(same_token[1:], token)


def test_weights_start_as_published():
    model = convattn.create_model("acmix_pvt_nano", embed_dims=(32, 64, 80, 128))
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_token", "pos_embed")) and parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)
    for module in model.modules():
        if isinstance(module, ACmix):
            assert module.v_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not module.v_proj.bias.any()  # type: ignore[union-attr]
            assert module.fc is not None
            assert module.fc.weight.std() > 0.1
            assert module.dep_conv is not None
            assert set(module.dep_conv.weight.unique().tolist()) == {0.0, 1.0}
            assert (module.alpha.item(), module.beta.item()) == (0.5, 0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"mix": "sum"},
        {"mix": "convolution"},
        {"shift": "random"},
        {"kernel_size": 5},
        {"reductions": (4, 2, 1, 1)},
        {"mlp_ratios": (2.0, 2.0, 2.0, 2.0)},
        {"img_size": 64},
        {"depths": (1, 2, 1, 2)},
    ],
    ids=str,
)
def test_each_ablation_is_a_keyword_and_changes_the_output(build, change):
    x = torch.randn(1, 3, 64, 96)
    out = build("acmix_pvt_nano", num_classes=4, **change)(x)
    assert out.shape == (1, 4)
    assert not torch.allclose(out, build("acmix_pvt_nano", num_classes=4)(x), atol=1e-7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_stride": 16}, "PVT has output stride 32 only, got output_stride=16"),
        ({"depths": (1, 1, 1)}, r"depths must name 4 stages, got \(1, 1, 1\)"),
        ({"num_heads": (1, 2, 5, 7)}, "the nearest num_heads that fits is 8"),
        ({"mix": "both"}, "unknown mix 'both'"),
        ({"img_size": 16}, "img_size must be at least 32, got 16"),
    ],
)
def test_errors_name_the_wrong_argument_and_the_right_one(change, message):
    with pytest.raises(ValueError, match=message):
        convattn.create_model("pvt_nano", **change)
