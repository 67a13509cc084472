from __future__ import annotations

import pytest
import torch

import convattn
from convattn.layers.acmix import ACmix
from convattn.models.resnet import VARIANTS
from convattn.ops.fuse import shift_kernels
from tests.golden import Fixture, relative_error

PARAMETERS = {
    "acmix_resnet26": 10_487_816,
    "acmix_resnet38": 14_410_896,
    "acmix_resnet50": 18_333_976,
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
    assert convattn.list_models("acmix_resnet*") == sorted(VARIANTS)
    assert set(PARAMETERS) == set(VARIANTS) - {"acmix_resnet_nano"}


def mixers(model: torch.nn.Module) -> list[ACmix]:
    return [m for m in model.modules() if isinstance(m, ACmix)]


def test_every_block_mixes_and_the_group_convolutions_start_at_the_shifts():
    model = convattn.create_model("acmix_resnet_nano")
    assert len(mixers(model)) == 4
    for mixer in mixers(model):
        weights = dict(mixer.named_parameters())
        start = shift_kernels(3, mixer.out_chans)
        torch.testing.assert_close(weights["dep_conv.weight"].detach(), start)
        assert (weights["alpha"].item(), weights["beta"].item()) == (0.5, 0.5)


def test_blocks_start_as_the_identity_unless_told_otherwise():
    for zero_init_last in (True, False):
        model = convattn.create_model("acmix_resnet_nano", zero_init_last=zero_init_last)
        norms = [p for n, p in model.named_parameters() if n.endswith("bn3.weight")]
        assert [bool(p.any()) for p in norms] == 4 * [not zero_init_last]


def test_strides_are_those_of_the_published_blocks():
    model = convattn.create_model("acmix_resnet38", device="meta")
    strides = [m.stride for m in mixers(model)]
    assert strides == [1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 2, 1]


@pytest.mark.parametrize(("output_stride", "dilations"), [(16, [1, 1, 1, 1]), (8, [1, 1, 1, 2])])
def test_output_stride_dilates_instead(build, output_stride, dilations):
    model = build("acmix_resnet_nano", output_stride=output_stride, num_classes=0, global_pool="")
    assert [m.dilation for m in mixers(model)] == dilations
    assert model(torch.randn(1, 3, 64, 96)).shape[2:] == (64 // output_stride, 96 // output_stride)
    features = build("acmix_resnet_nano", output_stride=output_stride, features_only=True)
    assert features.feature_info.reduction() == [min(s, output_stride) for s in (4, 8, 16, 32)]


def test_stride_2_of_the_stem_is_among_the_features(build):
    features = build("acmix_resnet_nano", features_only=True, out_indices=(0, 4))
    assert features.feature_info.reduction() == [2, 32]
    assert [m.shape[-1] for m in features(torch.randn(1, 3, 64, 64))] == [32, 2]


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
        {"attention": "global"},
        {"layers": (1, 2, 1, 1)},
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
    ],
)
def test_wrong_arguments_say_what_would_be_right(change, message):
    with pytest.raises(ValueError, match=message):
        convattn.create_model("acmix_resnet_nano", **change)
