from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import convattn
from convattn.layers.acmix.acmix import ACmix
from convattn.layers.xvolution import XVolution
from convattn.models.resnet import BASELINES, VARIANTS, XVOLUTIONS
from convattn.ops.fuse import shift_kernels
from tests.golden import Fixture, relative_error

PARAMETERS = {
    "acmix_resnet26": 10_487_816,
    "acmix_resnet38": 14_410_896,
    "acmix_resnet50": 18_333_976,
    "baseline_resnet50": 25_557_032,
}
NANO: dict[str, dict[str, Any]] = {
    "baseline_resnet_nano": {},
    "acmix_resnet_nano": {},
    "xvolution_resnet_nano": {"stages": (1, 2, 3, 4)},
}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_computes_what_the_published_code_computes(dtype, bound, tmp_path):
    golden = Fixture("acmix_resnet26")
    torch.save(golden.state(dtype), tmp_path / "published.pth")
    model = convattn.create_model("acmix_resnet26", dtype=dtype).eval()
    convattn.load_official(model, tmp_path / "published.pth")
    with torch.no_grad():
        assert relative_error(model(golden.images(dtype)), golden.output()) < bound


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_has_the_published_number_of_parameters(name, count):
    assert convattn.models.count_parameters(name) == count


def test_every_variant_is_registered():
    assert convattn.list_models("*_resnet*") == sorted({*BASELINES, *VARIANTS, *XVOLUTIONS})
    assert len(VARIANTS) == 3 * 4


def mixers(model: torch.nn.Module) -> list[ACmix]:
    return [m for m in model.modules() if isinstance(m, ACmix)]


def test_every_block_has_acmix_and_its_group_convolution_starts_at_the_shifts():
    model = convattn.create_model("acmix_resnet_nano")
    assert len(mixers(model)) == 4
    for mixer in mixers(model):
        weights = dict(mixer.named_parameters())
        start = shift_kernels(3, mixer.out_chans)
        torch.testing.assert_close(weights["dep_conv.weight"].detach(), start)
        assert (weights["alpha"].item(), weights["beta"].item()) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "conv"),
    [
        ("acmix_resnet_nano", "layer4.0.conv2.q_proj"),
        ("xvolution_resnet_nano", "layer3.0.conv2.v_proj"),
    ],
)
def test_projections_of_operators_start_as_timms_convolutions(name, conv):
    weight = convattn.create_model(name).get_submodule(conv).get_parameter("weight")
    fan_out = weight.shape[0]
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_alpha_and_beta_do_not_decay(build):
    names = build("acmix_resnet_nano").no_weight_decay()
    assert names == {f"layer{i}.0.conv2.{n}" for i in (1, 2, 3, 4) for n in ("alpha", "beta")}
    assert build("acmix_resnet_nano", mix="sum").no_weight_decay() == set()
    assert build("baseline_resnet_nano").no_weight_decay() == set()


def test_zero_init_last_starts_blocks_as_the_identity():
    for zero_init_last in (True, False):
        model = convattn.create_model("acmix_resnet_nano", zero_init_last=zero_init_last)
        norms = [p for n, p in model.named_parameters() if n.endswith("bn3.weight")]
        assert [bool(p.any()) for p in norms] == 4 * [not zero_init_last]


def test_a_pruned_network_can_get_a_classifier(build):
    model, x = build("acmix_resnet_nano"), torch.randn(2, 3, 64, 32)
    model.prune_intermediate_layers([1])
    model.reset_classifier(6)
    features = model.forward_features(x).mean((2, 3))
    torch.testing.assert_close(model(x), model.get_classifier()(features))


def test_strides_are_those_of_the_published_blocks():
    model = convattn.create_model("acmix_resnet38", device="meta")
    strides = [m.stride for m in mixers(model)]
    assert strides == [1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 2, 1]


@pytest.mark.parametrize("name", NANO)
@pytest.mark.parametrize(("output_stride", "dilations"), [(16, [1, 1, 1, 1]), (8, [1, 1, 1, 2])])
def test_output_stride_dilates_instead(build, name, output_stride, dilations):
    model = build(name, output_stride=output_stride, num_classes=0, global_pool="", **NANO[name])
    blocks = [block for stage in stages(model) for block in stage]
    found = [getattr(block.conv2, "dilation", 0) for block in blocks]
    assert [d if isinstance(d, int) else d[0] for d in found] == dilations
    assert model(torch.randn(1, 3, 64, 96)).shape[2:] == (64 // output_stride, 96 // output_stride)
    features = build(name, output_stride=output_stride, features_only=True)
    assert features.feature_info.reduction() == [min(s, output_stride) for s in (4, 8, 16, 32)]


def test_features_are_numbered_from_the_first_stage(build):
    features = build("acmix_resnet_nano", features_only=True, out_indices=(0, 3))
    assert features.feature_info.reduction() == [4, 32]
    assert [m.shape[-1] for m in features(torch.randn(1, 3, 64, 64))] == [16, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"window_size": 3},
        {"num_heads": 2},
        {"kernel_size": 5},
        {"mix": "attention"},
        {"mix": "convolution"},
        {"mix": "complement"},
        {"shift": "random"},
        {"shift": "tensor"},
        {"attention": "window"},
        {"attention": "shifted_window", "window_size": 4},
        {"attention": "global"},
        {"attention": "spatial_reduction", "num_heads": 2},
        {"attention": "patchwise", "window_size": 3},
        {"attention": "patchwise", "mix": "convolution"},
        {"attention": "global", "mix": "attention"},
        {"layers": (1, 2, 1, 1)},
        {"block": "basic"},
    ],
    ids=str,
)
def test_each_variant_is_a_keyword(build, change):
    x = torch.randn(2, 3, 64, 64)
    out = build("acmix_resnet_nano", num_classes=4, **change)(x)
    assert out.shape == (2, 4)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_stride": 4}, "must be 8, 16 or 32, got 4"),
        ({"num_heads": 5}, "num_heads"),
        ({"mix": "lerned"}, "did you mean 'learned'"),
        ({"attention": "sliding"}, "did you mean 'sliding_window'"),
        ({"kernel_size": 4}, "must be odd, got 4; use 3 or 5"),
        ({"layers": (1, 1)}, "must each name 4 stages"),
        ({"block": "botleneck"}, "unknown block 'botleneck'; did you mean 'bottleneck'"),
        ({"attention": "global", "window_size": 3}, "'global' takes no window_size"),
        ({"attention": "patchwise", "num_heads": 2}, "'patchwise' takes no num_heads"),
        ({"attention": "window", "output_stride": 8}, "'window' takes no dilation"),
    ],
)
def test_errors_name_the_wrong_argument_and_the_right_one(change, message):
    with pytest.raises(ValueError, match=message):
        convattn.create_model("acmix_resnet_nano", **change)


class TestBaseline:
    def test_is_timms_resnet50(self):
        theirs = timm.create_model("resnet50", num_classes=7).eval()
        ours = convattn.create_model("baseline_resnet50", num_classes=7).eval()
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x))

    @pytest.mark.parametrize("name", ["baseline_resnet26", "baseline_resnet38"])
    def test_has_the_blocks_of_its_acmix_network(self, name):
        plain: Any = convattn.create_model(name, device="meta")
        mixed: Any = convattn.create_model(name.replace("baseline", "acmix"), device="meta")
        assert [len(s) for s in stages(plain)] == [len(s) for s in stages(mixed)]
        changed = {k for k, v in plain.state_dict().items() if k not in mixed.state_dict()}
        assert changed
        assert all(k.endswith("conv2.weight") for k in changed)


def stages(model: Any) -> list[nn.Sequential]:
    return [model.layer1, model.layer2, model.layer3, model.layer4]


class TestSinglePaths:
    @pytest.mark.parametrize(("suffix", "mix"), [("conv", "convolution"), ("attn", "attention")])
    def test_single_paths_have_one_path(self, suffix, mix):
        model = convattn.create_model(f"acmix_resnet26_{suffix}", device="meta")
        assert {m.mix for m in mixers(model)} == {mix}
        names = {n.rsplit(".", 1)[-1] for n, _ in model.named_parameters()}
        assert not names & {"alpha", "beta"}


class TestXVolution:
    def added(self, chans: int, out: int) -> int:
        """Projections, 3x3 weighting and norm of the attention; the rest was there before."""
        return 3 * chans * out + 9 * out + 2 * out

    def test_parameters_are_those_of_resnet_and_of_the_attention(self):
        count = convattn.models.count_parameters
        basic = 21_797_672 + self.added(128, 256) + 5 * self.added(256, 256)
        assert count("xvolution_resnet34") == basic == 22_895_912
        bottleneck = 25_557_032 + 6 * self.added(256, 256)
        assert count("xvolution_resnet50") == bottleneck == 26_753_576

    @pytest.mark.parametrize(
        ("name", "conv"), [("xvolution_resnet34", "conv1"), ("xvolution_resnet50", "conv2")]
    )
    def test_operator_is_in_every_block_of_the_third_stage(self, name, conv):
        model = convattn.create_model(name, device="meta")
        found = {n: m for n, m in model.named_modules() if isinstance(m, XVolution)}
        assert list(found) == [f"layer3.{i}.{conv}" for i in range(6)]
        assert [m.stride for m in found.values()] == [2, 1, 1, 1, 1, 1]

    @pytest.mark.parametrize(
        ("stages", "expected"),
        [(2, [2]), ((4, 2), [2, 4]), ([3, 3], [3]), ((1, 2, 3, 4), [1, 2, 3, 4])],
    )
    def test_operator_is_in_the_chosen_stages(self, build, stages, expected):
        model = build("xvolution_resnet_nano", stages=stages, num_classes=3)
        found = [n for n, m in model.named_modules() if isinstance(m, XVolution)]
        assert found == [f"layer{i}.0.conv2" for i in expected]
        assert model(torch.randn(2, 3, 40, 32)).shape == (2, 3)

    @pytest.mark.parametrize("block", ["basic", "bottleneck"])
    @pytest.mark.parametrize("attention", ["pssa", "sa"])
    def test_starts_as_the_resnet_whose_weights_it_loads(self, build, block, attention, tmp_path):
        kind = {"block": block, "num_classes": 4}
        resnet, x = build("baseline_resnet_nano", **kind), torch.randn(2, 3, 64, 48)
        torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
        mixed = convattn.create_model(
            "xvolution_resnet_nano",
            pretrained=True,
            pretrained_cfg_overlay={"file": tmp_path / "resnet.pth", "num_classes": 4},
            stages=(2, 3),
            attention=attention,
            **kind,
        ).eval()
        torch.testing.assert_close(mixed(x), resnet(x))
        for name, weight in mixed.named_parameters():
            if "_proj" in name or "weighting" in name:
                assert weight.any()
            if name.endswith("attn_norm.weight"):
                weight.data.fill_(1.0)
        assert not torch.allclose(mixed(x), resnet(x), atol=1e-4)

    def test_saved_weights_are_loaded_again(self, build, tmp_path):
        model, x = build("xvolution_resnet_nano"), torch.randn(1, 3, 32, 32)
        torch.save(model.state_dict(), tmp_path / "own.pth")
        overlay = {"file": tmp_path / "own.pth"}
        again = convattn.create_model(
            "xvolution_resnet_nano", pretrained=True, pretrained_cfg_overlay=overlay
        )
        torch.testing.assert_close(again.eval()(x), model(x))

    def test_init_weights_starts_the_attention_at_zero(self):
        model: Any = convattn.create_model("xvolution_resnet_nano")
        model.init_weights()
        assert not model.layer3[0].conv2.attn_norm.weight.any()
        assert model.layer3[0].conv2.conv_norm.weight.all()

    def test_attention_is_a_keyword(self, build):
        outs = [
            build("xvolution_resnet_nano", num_classes=3, **change)(torch.ones(1, 3, 64, 64))
            for change in (
                {},
                {"attention": "sa"},
                {"distance": 2},
                {"num_heads": 2},
                {"weighting": False},
            )
        ]
        for i, out in enumerate(outs):
            assert not any(torch.allclose(out, other) for other in outs[:i])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"stages": (0, 3)}, r"some of 1, 2, 3, 4, such as \(3,\), got \(0, 3\)"),
            ({"stages": ()}, r"got \(\)"),
            ({"stages": 5}, "got 5"),
            ({"attention": "psa"}, "did you mean 'pssa'"),
            ({"attention": "sa", "distance": 2}, "distance is for attention='pssa'"),
        ],
    )
    def test_errors_name_the_wrong_argument_and_the_right_one(self, change, message):
        with pytest.raises(ValueError, match=message):
            convattn.create_model("xvolution_resnet_nano", **change)


def test_two_pools_give_twice_the_features():
    model: Any = convattn.create_model("acmix_resnet_nano", global_pool="catavgmax")
    assert model.head_hidden_size == model.get_classifier().in_features == 2 * model.num_features
