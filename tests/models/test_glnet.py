from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import convattn
from convattn.layers.attention.block import AttentionBlock
from convattn.layers.glmix import GLMix, GLMixBlock
from convattn.models.glnet import VARIANTS, GLNet
from tests.compare import assert_close
from tests.golden import Fixture, relative_error

PARAMETERS = {
    "glnet_stl": 30_296_786,
    "glnet_stl_paramslot": 30_481_106,
    "glnet_4g": 27_001_593,
    "glnet_9g": 60_010_617,
    "glnet_16g": 106_055_161,
    "glnet_4g_tklb": 27_514_593,
    "glnet_9g_tklb": 60_779_617,
}
FIXTURES = [
    pytest.param("glnet_demo", "glnet_nano", {"num_classes": 10}, id="demo"),
    pytest.param(
        "glnet_tklb_demo", "glnet_nano", {"num_classes": 10, "token_labelling": True}, id="tklb"
    ),
    pytest.param("glnet_stl", "glnet_stl", {}, id="stl", marks=pytest.mark.slow),
    pytest.param("glnet_4g", "glnet_4g", {}, id="4g", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
@pytest.mark.parametrize(("fixture", "name", "arguments"), FIXTURES)
def test_computes_what_the_published_code_computes(
    fixture, name, arguments, dtype, bound, tmp_path
):
    golden = Fixture(fixture)
    torch.save({"model": golden.state(dtype), "epoch": 299}, tmp_path / "published.pth")
    model = convattn.create_model(name, dtype=dtype, **arguments).eval()
    convattn.load_official(model, tmp_path / "published.pth")
    with torch.no_grad():
        assert relative_error(model(golden.images(dtype)), golden.output()) < bound


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_has_the_published_number_of_parameters(name, count):
    assert convattn.models.count_parameters(name) == count


def test_every_variant_is_registered():
    assert convattn.list_models("glnet*") == sorted(VARIANTS)
    whole = {name for name in VARIANTS if not name.endswith(("_conv", "_attn"))}
    assert set(PARAMETERS) == whole - {"glnet_nano"}
    assert set(VARIANTS) == {f"{name}{end}" for name in whole for end in ("", "_conv", "_attn")}


@pytest.mark.parametrize("name", [*PARAMETERS, "glnet_nano"])
def test_single_paths_leave_out_the_other_branch_and_keep_the_attention_blocks(name):
    both, conv, attn = (
        convattn.create_model(f"{name}{end}", device="meta") for end in ("", "_conv", "_attn")
    )
    names = [dict(model.named_parameters()).keys() for model in (both, conv, attn)]
    assert names[0] == names[1] | names[2]
    alone = [{n.split("mixer.")[1].split(".")[0] for n in names[0] - k} for k in names[1:]]
    slots = {"slots"} if "paramslot" in name else set()
    assert alone == [{"slot_attn", "slot_scale"} | slots, {"local"}]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("glnet_stl", "G" * 10 + "A" * 2), ("glnet_4g", "G" * 8 + "GA" * 9 + "A" * 4)],
)
def test_stages_hold_the_blocks_of_their_layout(name, kinds):
    model: Any = convattn.create_model(name, device="meta")
    blocks = [b for stage in model.stages for b in stage.blocks]
    names = {GLMixBlock: "G", AttentionBlock: "A"}
    assert "".join(names[type(b)] for b in blocks) == kinds


def test_drop_path_grows_from_zero_to_the_papers_rate():
    model: Any = convattn.create_model("glnet_4g", device="meta")
    blocks = [b for stage in model.stages for b in stage.blocks]
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in blocks]
    assert rates == pytest.approx([0.15 * i / 29 for i in range(30)])


def test_weights_start_as_published():
    model = convattn.create_model("glnet_nano", layer_scale=1e-4, slot_init="learned")
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert module.bias is not None
            assert not module.bias.any()
            if module.weight.numel() > 5000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, GLMix):
            assert module.slot_scale.item() == pytest.approx(module.in_chans**-0.5)
            assert module.slots.std().item() == pytest.approx(0.02, rel=0.2)
        if isinstance(module, GLMixBlock):
            torch.testing.assert_close(module.ls1.gamma, torch.full((module.dim,), 1e-4))


@pytest.mark.parametrize(
    "change",
    [
        {"slots": (3, 5)},
        {"slots": 25, "slot_init": "learned"},
        {"clustering": "kmeans"},
        {"clustering": "static"},
        {"branches": "local"},
        {"branches": "global"},
        {"branches": "sequential"},
        {"kernel_size": 7},
        {"layer_scale": 1e-4},
        {"stem": "patch"},
        {"depths": (1, 1, 1, 2), "embed_dims": (32, 32, 64, 64)},
    ],
    ids=str,
)
def test_each_ablation_is_a_keyword_and_changes_the_output(build, change):
    x = torch.randn(1, 3, 64, 96)
    out = build("glnet_nano", num_classes=4, **change)(x)
    assert out.shape == (1, 4)
    assert not torch.allclose(out, build("glnet_nano", num_classes=4)(x), atol=1e-6)


def test_trained_model_runs_on_another_slot_grid(build):
    model, x = build("glnet_nano", num_classes=4), torch.randn(1, 3, 64, 96)
    before = model(x)
    model.set_slot_grid((2, 6))
    assert {m.slot_grid for m in model.modules() if isinstance(m, GLMix)} == {(2, 6)}
    assert not torch.allclose(model(x), before)
    model.set_slot_grid((4, 4))
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("change", [{"slot_init": "learned"}, {"branches": "local"}])
def test_a_slot_grid_needs_pooled_slots(build, change):
    with pytest.raises(ValueError, match=r"slot grid \(2, 2\) needs pooled slots"):
        build("glnet_nano", **change).set_slot_grid((2, 2))


def test_slots_and_temperatures_do_not_decay(build):
    names = build("glnet_nano", slot_init="learned").no_weight_decay()
    assert len(names) == 6
    assert {n.rsplit(".", 1)[-1] for n in names} == {"slots", "slot_scale"}


class TestTokenLabelling:
    @pytest.fixture
    def model(self, build) -> GLNet:
        return build("glnet_nano", num_classes=6, token_labelling=True)

    def test_output_adds_half_of_the_largest_position_logit(self, model):
        x = torch.randn(3, 3, 64, 96)
        logits, positions = model.forward_token_labels(x)
        assert (logits.shape, positions.shape) == ((3, 6), (3, 6, 2, 3))
        torch.testing.assert_close(model(x), logits + 0.5 * positions.amax((2, 3)))
        torch.testing.assert_close(model.train()(x).shape, logits.shape)

    def test_trains_every_parameter_under_an_ordinary_loss(self, model):
        model.train()(torch.randn(2, 3, 64, 64)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())

    def test_box_swaps_the_stem_and_puts_the_positions_back(self, model):
        x, whole = torch.randn(2, 3, 96, 64), (0, 0, 3, 2)
        logits, positions = model.forward_token_labels(x)
        swapped, restored = model.forward_token_labels(x, whole)
        assert_close(swapped, logits.flip(0), torch.float32)
        assert_close(restored, positions, torch.float32)
        empty = model.forward_token_labels(x, (1, 1, 1, 2))
        torch.testing.assert_close(empty, (logits, positions))

    def test_box_mixes_the_pixels_inside_it(self, model):
        x, box = torch.randn(2, 3, 64, 64), (0, 1, 2, 2)
        seen: list[torch.Tensor] = []
        model.stages.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        model.forward_token_labels(x, box)
        stem = model.stem(x)
        torch.testing.assert_close(seen[0][..., :8], stem[..., :8])
        torch.testing.assert_close(seen[0][..., 8:], stem.flip(0)[..., 8:])

    @pytest.mark.parametrize("box", [(0, 0, 3, 1), (1, 0, 0, 1), (-1, 0, 1, 1)])
    def test_a_box_beyond_the_grid_is_refused(self, model, box):
        with pytest.raises(ValueError, match=r"final grid of \(2, 2\), got"):
            model.forward_token_labels(torch.randn(2, 3, 64, 64), box)

    def test_without_a_position_head_raises(self, build):
        with pytest.raises(ValueError, match="token_labelling=True"):
            build("glnet_nano").forward_token_labels(torch.randn(1, 3, 32, 32))

    def test_both_classifiers_are_replaced(self, model):
        x = torch.randn(1, 3, 32, 32)
        model.reset_classifier(11)
        assert not any(module.training for module in model.modules())
        assert (model(x).shape, model.token_head.out_features) == ((1, 11), 11)
        model.reset_classifier(0)
        assert model(x).shape == (1, model.num_features)
        model.reset_classifier(3)
        assert model(x).shape == (1, 3)

    def test_classifiers_are_named_for_timm(self):
        model: Any = convattn.create_model("glnet_4g_tklb", device="meta")
        for name in model.pretrained_cfg["classifier"]:
            assert model.get_submodule(name).out_features == 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_stride": 16}, "output stride 32 only, got output_stride=16"),
        ({"stem": "pach"}, "unknown stem 'pach'; did you mean 'patch'"),
        ({"blocks": ("glmix", "glmix", "hybrd", "mha")}, "did you mean 'hybrid'"),
        ({"depths": (1, 1, 2)}, "must each name 4 stages"),
        ({"embed_dims": (32, 64, 100, 128)}, "multiple of head_dim, got dim=100, head_dim=32"),
        ({"slots": 15}, "must be a square, got slots=15; use 9, 16"),
        ({"clustering": "hard"}, "unknown clustering 'hard'"),
    ],
)
def test_errors_name_the_wrong_argument_and_the_right_one(change, message):
    with pytest.raises(ValueError, match=message):
        convattn.create_model("glnet_nano", **change)


def test_other_output_format_raises(build):
    with pytest.raises(ValueError, match="must be 'NCHW', got 'NHWC'"):
        build("glnet_nano").forward_intermediates(torch.randn(1, 3, 32, 32), output_fmt="NHWC")


def test_a_new_classifier_starts_as_the_first_one_did():
    model = convattn.create_model("glnet_nano", token_labelling=True, num_classes=5)
    assert isinstance(model, GLNet)
    model.reset_classifier(50)
    for name in ("head.fc", "token_head"):
        assert not model.get_parameter(f"{name}.bias").any()
        assert 0.015 < model.get_parameter(f"{name}.weight").std() < 0.025
