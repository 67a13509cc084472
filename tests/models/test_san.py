from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import convattn
from convattn.layers.acmix.acmix import ACmix
from convattn.models.san import VARIANTS, SANBlock
from convattn.ops.fuse import shift_kernels
from tests.compare import assert_close
from tests.golden import Fixture, relative_error

# By the formulas of the layers; the counts of SAN15 and of ACmix are not published.
PARAMETERS = {
    "san10": 11_841_124,
    "san15": 16_181_310,
    "san19": 20_518_470,
    "acmix_san10": 11_994_612,
    "acmix_san15": 16_414_134,
    "acmix_san19": 20_829_278,
}
# The papers also count norms and activations, so that our figures are smaller.
GIGA_MACS = {
    "san10": (1.9, 0.06),
    "san15": (2.6, 0.05),
    "san19": (3.3, 0.06),
    "acmix_san10": (1.9, 0.05),
    "acmix_san15": (2.7, 0.05),
    "acmix_san19": (3.4, 0.05),
}


def mixers(model: nn.Module) -> list[ACmix]:
    return [m for m in model.modules() if isinstance(m, ACmix)]


def names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_computes_what_the_published_code_computes(dtype, bound, tmp_path):
    golden = Fixture("san10")
    torch.save({"state_dict": golden.state(dtype), "epoch": 100}, tmp_path / "published.pth")
    model = convattn.create_model("san10", dtype=dtype).eval()
    report = convattn.load_official(model, tmp_path / "published.pth")
    assert report.wrapper == "state_dict"
    with torch.no_grad():
        assert relative_error(model(golden.images(dtype)), golden.output()) < bound


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("bn3.running_var"), r"1 missing \(stages\.3\.norm\.0\.running_v"),
        (
            lambda state: state.update({"layer4.1.conv.bias": torch.zeros(2048)}),
            r"1 unexpected \(stages\.4\.blocks\.1\.expand\.bias\)",
        ),
        (
            lambda state: state.update({"conv2.weight": torch.zeros(512, 64, 1, 1)}),
            r"stages\.2\.downsample\.1\.weight \(512, 64, 1, 1\) instead of \(512, 256, 1, 1\)",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_published_file_must_hold_exactly_the_models_weights(
    change: Callable[[dict[str, Tensor]], Any], message: str
):
    state = Fixture("san10").state(torch.float32)
    change(state)
    with pytest.raises(ValueError, match=message):
        convattn.load_official(convattn.create_model("san10"), state)


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_number_of_parameters(name, count):
    assert convattn.models.count_parameters(name) == count


def test_acmix_adds_a_connection_a_group_convolution_and_two_factors():
    model: Any = convattn.create_model("acmix_san15", device="meta")
    blocks = [b for b in model.modules() if isinstance(b, SANBlock)]
    # fc 6 -> 9; C / 16 groups of 9 -> 4 channels, 3 x 3; alpha and beta
    added = sum(6 * 9 + b.dim // 16 * 9 * 4 * 9 + 2 for b in blocks)
    assert PARAMETERS["acmix_san15"] - PARAMETERS["san15"] == added


@pytest.mark.parametrize(("name", "macs", "within"), [(n, *v) for n, v in GIGA_MACS.items()])
def test_costs_what_the_papers_say(name, macs, within):
    assert convattn.models.count_macs(name) / 1e9 == pytest.approx(macs, rel=within)


def test_every_variant_is_registered():
    assert convattn.list_models("*san*") == sorted(VARIANTS)
    sizes = ("10", "15", "19", "_nano")
    assert set(VARIANTS) == {f"san{s}" for s in sizes} | {
        f"acmix_san{s}{path}" for s in sizes for path in ("", "_attn", "_conv")
    }


def test_baseline_is_the_attention_alone(build):
    x = torch.randn(2, 3, 64, 64)
    baseline, alone = build("san_nano"), build("acmix_san_nano_attn")
    assert baseline.config == alone.config
    alone.load_state_dict(baseline.state_dict())
    torch.testing.assert_close(alone(x), baseline(x))


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("acmix_san_nano_attn", {"alpha", "beta", "fc.weight", "dep_conv.weight"}),
        (
            "acmix_san_nano_conv",
            {"alpha", "beta"}
            | {f"attn.mlp.{i}.weight" for i in (0, 2, 3, 5)}
            | {f"attn.mlp.{i}.bias" for i in (0, 3, 5)},
        ),
    ],
)
def test_a_single_path_lacks_exactly_the_parameters_of_the_other(name, gone):
    whole = names(convattn.create_model("acmix_san_nano", device="meta"))
    alone = names(convattn.create_model(name, device="meta"))
    assert alone < whole
    assert {n.split(".mixer.")[1] for n in whole - alone} == gone
    assert len(whole - alone) == 5 * len(gone)


def test_stages_have_the_published_blocks():
    model: Any = convattn.create_model("san19", device="meta")
    assert [len(stage.blocks) for stage in model.stages] == [3, 3, 4, 6, 3]
    sizes = [mixer.attn.window_size for mixer in mixers(model)]
    assert sizes == 3 * [3] + 16 * [7]
    for block in (m for m in model.modules() if isinstance(m, SANBlock)):
        mixer: Any = block.mixer
        channels = [p.out_channels for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj)]
        assert channels == [block.dim // 16, block.dim // 16, block.dim // 4]
        assert mixer.attn.mlp[2].out_channels == block.dim // 32


def test_group_convolutions_start_at_the_shifts():
    model = convattn.create_model("acmix_san_nano")
    assert len(mixers(model)) == 5
    for mixer in mixers(model):
        weights = dict(mixer.named_parameters())
        start = shift_kernels(3, mixer.out_chans)
        torch.testing.assert_close(weights["dep_conv.weight"].detach(), start)
        assert (weights["alpha"].item(), weights["beta"].item()) == (0.5, 0.5)
        assert "fc.bias" not in weights


def test_factors_do_not_decay(build):
    model = build("acmix_san_nano")
    assert {n.rsplit(".", 1)[-1] for n in model.no_weight_decay()} == {"alpha", "beta"}
    assert len(model.no_weight_decay()) == 10
    assert build("san_nano").no_weight_decay() == set()


@pytest.mark.parametrize("size", [(32, 32), (33, 63), (95, 40), (64, 129)])
def test_maps_are_rounded_down_and_never_empty(build, size):
    model = build("acmix_san_nano")
    maps = model.forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
    for stride, x in zip((4, 8, 16, 32), maps, strict=True):
        assert x.shape[2:] == tuple(n // stride for n in size)


def test_maps_end_in_their_norm(build):
    maps = build("san_nano").forward_intermediates(
        torch.randn(2, 3, 64, 64), intermediates_only=True
    )
    assert all((x >= 0).all() and (x == 0).any() for x in maps)


def test_features_are_numbered_from_the_stage_of_stride_4(build):
    features = build("san_nano", features_only=True, out_indices=(0, 3))
    assert features.feature_info.reduction() == [4, 32]
    assert [m.shape[-1] for m in features(torch.randn(1, 3, 64, 64))] == [16, 2]


@pytest.mark.parametrize("coarse", [False, True])
def test_the_norm_of_a_stage_learns_with_its_blocks(build, coarse):
    from timm.models import group_parameters

    model = build("san_nano")
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    for i in range(5):
        wanted = {f"stages.{i}.norm.0.weight", f"stages.{i}.blocks.0.norm1.weight"}
        assert sum(wanted <= set(members) for members in groups.values()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"window_sizes": (3, 5, 5, 5, 5)},
        {"kernel_size": 5},
        {"mix": "sum"},
        {"shift": "random"},
        {"depths": (1, 1, 2, 1, 1)},
    ],
    ids=str,
)
def test_each_variant_is_a_keyword_and_changes_the_output(build, change):
    x = torch.randn(2, 3, 64, 96)
    out = build("acmix_san_nano", num_classes=4, **change)(x)
    assert out.shape == (2, 4)
    assert not torch.allclose(out, build("acmix_san_nano", num_classes=4)(x), atol=1e-6)


@pytest.mark.parametrize("change", [{"mix": "complement"}, {"shift": "fixed"}, {"shift": "tensor"}])
def test_learned_variants_start_at_the_fixed_ones(build, change):
    x = torch.randn(1, 3, 40, 32)
    assert_close(build("acmix_san_nano", **change)(x), build("acmix_san_nano")(x), torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_stride": 16}, "output stride 32 only, got output_stride=16"),
        ({"mix": "lerned"}, "did you mean 'learned'"),
        ({"depths": (1, 1, 2, 1)}, "must each name 5 stages"),
        ({"window_sizes": (3, 7)}, r"must each name 5 stages, got .*\(3, 7\)"),
        ({"embed_dims": (32, 64, 72, 96, 128)}, "must be multiples of 32, got 72"),
        ({"window_sizes": (3, 7, 7, 6, 7)}, "must be odd, got 6; use 5 or 7"),
    ],
)
def test_errors_name_the_wrong_argument_and_the_right_one(change, message):
    with pytest.raises(ValueError, match=message):
        convattn.create_model("acmix_san_nano", **change)
