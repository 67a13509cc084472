from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import convattn
from convattn.layers.acmix.acmix import ACmix
from convattn.models.swin import VARIANTS, PatchEmbed, PatchMerging, Swin
from convattn.ops.fuse import shift_kernels
from tests.compare import assert_close
from tests.golden import Fixture, relative_error

PARAMETERS = {"acmix_swin_tiny": 28_649_908, "acmix_swin_small": 50_345_080}
GIGA_MACS = [
    ("acmix_swin_tiny", 4.6),
    pytest.param("acmix_swin_small", 9.0, marks=pytest.mark.slow),
    pytest.param("acmix_swin_tiny_attn", 4.5, marks=pytest.mark.slow),
    pytest.param("acmix_swin_small_attn", 8.7, marks=pytest.mark.slow),
]
DEMO: dict[str, Any] = {
    "embed_dims": (24, 48, 96),
    "depths": (2, 2, 2),
    "num_heads": (3, 6, 12),
    "window_size": 7,
    "num_classes": 10,
}
FIXTURES = [
    pytest.param("acmix_swin_small_demo", "acmix_swin_nano", DEMO, id="demo"),
    pytest.param("acmix_swin_tiny", "acmix_swin_tiny", {}, id="tiny", marks=pytest.mark.slow),
]


def mixers(model: nn.Module) -> list[ACmix]:
    return [m for m in model.modules() if isinstance(m, ACmix)]


def names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
@pytest.mark.parametrize(("fixture", "name", "arguments"), FIXTURES)
def test_computes_what_the_published_code_computes(
    fixture, name, arguments, dtype, bound, tmp_path
):
    golden = Fixture(fixture)
    torch.save({"model": golden.state(dtype), "epoch": 299}, tmp_path / "published.pth")
    model = convattn.create_model(name, dtype=dtype, **arguments).eval()
    report = convattn.load_official(model, tmp_path / "published.pth")
    assert report.wrapper == "model"
    with torch.no_grad():
        assert relative_error(model(golden.images(dtype)), golden.output()) < bound


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layers.0.downsample.norm.bias"), r"1 missing \(stages\.1\."),
        (
            lambda state: state.update({"layers.2.downsample.norm.bias": torch.zeros(384)}),
            r"1 unexpected \(layers\.2\.downsample\.norm\.bias\)",
        ),
        (
            lambda state: state.update({"head.bias": torch.zeros(7)}),
            r"head\.fc\.bias \(7,\) instead of \(10,\)",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_published_file_must_hold_exactly_the_models_weights(
    change: Callable[[dict[str, Tensor]], Any], message: str
):
    state = Fixture("acmix_swin_small_demo").state()
    change(state)
    with pytest.raises(ValueError, match=message):
        convattn.load_official(convattn.create_model("acmix_swin_nano", **DEMO), state)


def with_buffers() -> dict[str, torch.Tensor]:
    state = Fixture("acmix_swin_small_demo").state()
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 49, 49)
    state["layers.0.blocks.1.attn.relative_position_index"] = torch.zeros(49, 49).long()
    return state


def test_buffers_and_masks_of_a_published_file_are_ignored():
    model = convattn.create_model("acmix_swin_nano", **DEMO)
    report = convattn.load_official(model, with_buffers())
    assert len(report.ignored) == 2


@pytest.mark.parametrize("change", [{}, {"in_chans": 1}, {"num_classes": 3}])
def test_timm_loads_a_published_file_with_its_buffers(change, tmp_path):
    torch.save({"model": with_buffers()}, tmp_path / "published.pth")
    overlay = {"file": tmp_path / "published.pth", "num_classes": 10}
    model: Any = convattn.create_model(
        "acmix_swin_nano", pretrained=True, pretrained_cfg_overlay=overlay, **{**DEMO, **change}
    )
    expected: Any = convattn.create_model("acmix_swin_nano", **DEMO)
    convattn.load_official(expected, with_buffers())
    torch.testing.assert_close(model.stages.state_dict(), expected.stages.state_dict())


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_has_the_published_number_of_parameters(name, count):
    assert convattn.models.count_parameters(name) == count


@pytest.mark.parametrize(("name", "macs"), GIGA_MACS)
def test_costs_what_the_paper_says(name, macs):
    assert convattn.models.count_macs(name) / 1e9 == pytest.approx(macs, rel=0.05)


def test_convolution_of_conv_swin_is_dense():
    """It has 39 M parameters as in the paper, and more multiply-adds than the paper's 4.5 G."""
    assert round(convattn.models.count_parameters("conv_swin_tiny") / 1e6) == 39
    model: Any = convattn.create_model("conv_swin_tiny", device="meta")
    blocks = [b for stage in model.stages for b in stage.blocks]
    assert [b.mixer.weight.shape for b in blocks] == [(b.dim, b.dim, 3, 3) for b in blocks]
    assert all(b.mixer.bias is not None for b in blocks)
    assert convattn.models.count_macs(model) / 1e9 == pytest.approx(6.085, abs=0.001)


def test_every_variant_is_registered():
    assert convattn.list_models("*swin*") == sorted(VARIANTS)
    sizes = ("nano", "small", "tiny")
    expected = [f"acmix_swin_{s}{path}" for s in sizes for path in ("", "_attn", "_conv")]
    assert sorted(VARIANTS) == [*expected, "conv_swin_nano", "conv_swin_tiny"]


TIMM = {
    "acmix_swin_tiny_attn": "swin_tiny_patch4_window7_224",
    "acmix_swin_small_attn": "swin_small_patch4_window7_224",
}


@pytest.mark.parametrize(("name", "timms"), TIMM.items())
def test_attention_alone_has_as_many_parameters_as_swin(name, timms):
    with torch.device("meta"):
        swin = timm.create_model(timms)
    assert convattn.models.count_parameters(name) == sum(p.numel() for p in swin.parameters())


def from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of timm's Swin under published names: a stage ends with its merging."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        renamed[".".join(parts).replace("head.fc.", "head.")] = value
    return renamed


def test_attention_alone_computes_what_swin_computes():
    torch.manual_seed(0)
    swin: Any = timm.create_model(TIMM["acmix_swin_tiny_attn"]).eval()
    for module in swin.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    for name, table in swin.named_parameters():
        if name.endswith("relative_position_bias_table"):
            nn.init.normal_(table)
    model: Any = convattn.create_model("acmix_swin_tiny_attn").eval()
    convattn.load_official(model, from_timm(swin.state_dict()))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert relative_error(model(x), swin(x)) < 1e-4
        theirs = swin.forward_intermediates(x, intermediates_only=True)
        ours = model.forward_intermediates(x, intermediates_only=True)
        assert max(relative_error(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-4


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("acmix_swin_nano_attn", {"alpha", "beta", "fc.weight", "fc.bias", "dep_conv.weight"}),
        (
            "acmix_swin_nano_conv",
            {
                "alpha",
                "beta",
                "attn.proj.weight",
                "attn.proj.bias",
                "attn.relative_position_bias_table",
            },
        ),
    ],
)
def test_a_single_path_lacks_exactly_the_parameters_of_the_other(name, gone):
    whole = names(convattn.create_model("acmix_swin_nano", device="meta"))
    alone = names(convattn.create_model(name, device="meta"))
    assert alone < whole
    assert {n.split(".mixer.")[1] for n in whole - alone} == gone
    assert len(whole - alone) == 6 * len(gone)


def test_every_second_block_is_shifted_by_half_a_window():
    model = convattn.create_model("acmix_swin_tiny", device="meta")
    parts: list[Any] = [m.attn for m in mixers(model)]
    assert [p.shift for p in parts] == [0, 3] * 6
    assert [p.num_heads for p in parts] == [3] * 2 + [6] * 2 + [12] * 6 + [24] * 2
    assert {p.window_size for p in parts} == {7}


def test_each_stage_may_have_its_own_window():
    model = convattn.create_model("acmix_swin_nano", window_size=(8, 4, 2, 1), device="meta")
    parts: list[Any] = [m.attn for m in mixers(model)]
    assert [p.window_size for p in parts] == [8, 8, 4, 4, 2, 1]


@pytest.mark.parametrize(("name", "rate"), [("acmix_swin_tiny", 0.2), ("acmix_swin_small", 0.3)])
def test_drop_path_grows_from_zero_to_the_papers_rate(name, rate):
    model: Any = convattn.create_model(name, device="meta")
    blocks = [b for stage in model.stages for b in stage.blocks]
    rates = [getattr(b.drop_path2, "drop_prob", 0.0) for b in blocks]
    last = len(blocks) - 1
    assert rates == pytest.approx([rate * i / last for i in range(last + 1)])


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_starts_like_swin_and_at_the_shifts(kernel_size):
    torch.manual_seed(0)
    model = convattn.create_model(
        "acmix_swin_nano", embed_dims=(32, 64, 96, 96), kernel_size=kernel_size
    )
    for mixer in mixers(model):
        weights = dict(mixer.named_parameters())
        start = shift_kernels(kernel_size, mixer.out_chans)
        torch.testing.assert_close(weights["dep_conv.weight"].detach(), start)
        assert (weights["alpha"].item(), weights["beta"].item()) == (0.5, 0.5)
        assert weights["fc.bias"].any()
        assert weights["fc.weight"].abs().max() > 0.08  # as torch starts it
        assert 0.01 < weights["attn.relative_position_bias_table"].std() < 0.03
    for name, weight in model.named_parameters():
        linear = name.endswith(("proj.weight", "fc1.weight", "fc2.weight", "reduction.weight"))
        if linear and weight.numel() > 4000:
            assert weight.std().item() == pytest.approx(0.02, rel=0.05)
            bias = name.replace("weight", "bias")
            assert bias not in names(model) or not model.get_parameter(bias).any()


def test_a_new_classifier_starts_as_the_first_one_did():
    model = convattn.create_model("acmix_swin_nano", num_classes=5)
    assert isinstance(model, Swin)
    model.reset_classifier(50)
    assert not model.get_parameter("head.fc.bias").any()
    assert 0.015 < model.get_parameter("head.fc.weight").std() < 0.025


def test_factors_and_bias_tables_do_not_decay(build):
    model = build("acmix_swin_nano")
    leaves = {n.rsplit(".", 1)[-1] for n in model.no_weight_decay()}
    assert leaves == {"alpha", "beta", "relative_position_bias_table"}
    assert len(model.no_weight_decay()) == 18
    assert build("conv_swin_nano").no_weight_decay() == set()


@pytest.mark.parametrize("size", [(32, 32), (33, 35), (63, 98), (57, 224)])
def test_maps_are_rounded_up(build, size):
    maps = build("acmix_swin_nano").forward_intermediates(
        torch.randn(1, 3, *size), intermediates_only=True
    )
    for stride, x in zip((4, 8, 16, 32), maps, strict=True):
        assert x.shape[2:] == tuple(-(-n // stride) for n in size)


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (5, 6)])
def test_patches_and_merging_pad_with_zeros(size):
    H, W = size
    for module, step in ((PatchEmbed(3, 8), 4), (PatchMerging(3, 8), 2)):
        x = torch.randn(2, 3, H, W)
        padded = F.pad(x, (0, -W % step, 0, -H % step))
        torch.testing.assert_close(module(x), module(padded))
        assert module(x).shape == (2, 8, -(-H // step), -(-W // step))


def test_merging_stacks_the_columns_of_each_two_by_two_pixels():
    module = PatchMerging(1, 4)
    module.norm = nn.Identity()  # type: ignore[assignment]
    nn.init.eye_(module.reduction.weight.data[..., 0, 0])
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    assert_close(module(x).flatten(), torch.tensor([1.0, 3.0, 2.0, 4.0]), torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        {"window_size": 3},
        {"num_heads": (2, 2, 4, 4)},
        {"kernel_size": 5},
        {"mlp_ratio": 2.0},
        {"mix": "sum"},
        {"shift": "random"},
        {"depths": (1, 2, 1, 1)},
        {"mixer": "conv"},
    ],
    ids=str,
)
def test_each_variant_is_a_keyword_and_changes_the_output(build, change):
    x = torch.randn(2, 3, 64, 96)
    out = build("acmix_swin_nano", num_classes=4, **change)(x)
    assert out.shape == (2, 4)
    assert not torch.allclose(out, build("acmix_swin_nano", num_classes=4)(x), atol=1e-6)


@pytest.mark.parametrize("change", [{"mix": "complement"}, {"shift": "fixed"}, {"shift": "tensor"}])
def test_learned_variants_start_at_the_fixed_ones(build, change):
    x = torch.randn(1, 3, 40, 32)
    assert_close(build("acmix_swin_nano", **change)(x), build("acmix_swin_nano")(x), torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_stride": 16}, "output stride 32 only, got output_stride=16"),
        ({"mixer": "acmx"}, "unknown mixer 'acmx'; did you mean 'acmix'"),
        ({"mix": "lerned"}, "did you mean 'learned'"),
        ({"mixer": "conv", "mix": "attention"}, "mix='attention' .* with mixer='conv'"),
        ({"mixer": "conv", "shift": "fixed"}, "shift='fixed' with mixer='conv'"),
        ({"depths": (1, 0, 1, 1)}, "the depth of a stage must be at least 1, got 0"),
        ({"depths": (1, 1, 2)}, r"must each have one entry per stage, got .*\(1, 1, 2\)"),
        ({"window_size": (7, 7)}, "must each have one entry per stage"),
        ({"num_heads": (3, 2, 4, 8)}, "multiple of num_heads, got dim=16, num_heads=3"),
        ({"kernel_size": 4}, "must be odd, got 4; use 3 or 5"),
    ],
)
def test_errors_name_the_wrong_argument_and_the_right_one(change, message):
    with pytest.raises(ValueError, match=message):
        convattn.create_model("acmix_swin_nano", **change)


def test_there_is_a_feature_map_for_each_stage():
    model: Any = convattn.create_model("acmix_swin_nano", **DEMO, features_only=True)
    assert model.feature_info.reduction() == [4, 8, 16]
    assert [m.shape[2] for m in model(torch.randn(1, 3, 112, 112))] == [28, 14, 7]


def test_a_new_classifier_pools_in_the_usual_way(build):
    model, x = build("acmix_swin_nano", num_classes=0, global_pool=""), torch.randn(1, 3, 32, 64)
    model.reset_classifier(3)
    features = model.forward_features(x).mean((2, 3))
    torch.testing.assert_close(model(x), model.get_classifier()(features))
