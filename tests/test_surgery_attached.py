"""Hooks, attributes and computed weights of a convolution: skipped, copied or reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, StdConv2d
from torch import nn
from torch.nn.utils import parametrizations, prune

import convattn
from convattn.layers import ConvBeside
from tests.test_surgery import OPERATORS, every_operator, small


class Gained(nn.Conv2d):
    """A convolution that multiplies its outputs by a parameter."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros(1))


class Circular(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input.roll(1, -1), weight, bias)


def named(net: nn.Module, **options: Any) -> tuple[convattn.surgery.Report, str]:
    report = convattn.replace(net, "acmix", where="0", **options)
    return report, "\n".join(str(report).splitlines()[2:])


def left(net: nn.Sequential) -> str:
    conv = net[0]
    net.append(nn.Conv2d(8, 8, 3, padding=1))
    report = convattn.replace(net, "acmix", where="*")
    assert net[0] is conv
    assert list(report.replaced) == ["3"]
    assert "  0: skipped, it " in str(report) or "  0: skipped, its " in str(report)
    return report.skipped["0"]


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward hook": lambda m: m.register_forward_hook(lambda *a: None),
    "forward pre hook": lambda m: m.register_forward_pre_hook(
        lambda m, a, k: None, with_kwargs=True
    ),
    "backward hook": lambda m: m.register_full_backward_hook(lambda *a: None),
    "backward pre hook": lambda m: m.register_full_backward_pre_hook(lambda *a: None),
    "state dict hook": lambda m: m.register_state_dict_post_hook(lambda *a: None),
    "state dict pre hook": lambda m: m.register_state_dict_pre_hook(lambda *a: None),
    "load state dict pre hook": lambda m: m.register_load_state_dict_pre_hook(lambda *a: None),
    "load state dict post hook": lambda m: m.register_load_state_dict_post_hook(lambda *a: None),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_convolution_with_hooks_is_skipped(kind):
    net = small()
    handle = HOOKS[kind](net[0])
    reason = left(net)
    assert reason.startswith(f"it has hooks (1 {kind})")
    assert "register them on the new layer" in reason
    handle.remove()
    assert convattn.replace(net, "glmix", where="0").replaced


@pytest.mark.parametrize("kind", HOOKS)
def test_the_report_says_what_hooks_of_a_kept_convolution_see(kind):
    net = small()
    HOOKS[kind](net[0])
    report, lines = named(net, keep=True)
    assert lines == f"  its hooks (1 {kind}) get the outputs of the convolution alone: 0"
    assert report.replaced["0"].notes == (
        f"its hooks (1 {kind}) get the outputs of the convolution alone",
    )


def test_timms_feature_hooks_still_work():
    net: Any = timm.create_model(
        "efficientnet_lite0", features_only=True, feature_location="expansion", out_indices=(3, 4)
    ).eval()
    hooked = [name for name, module in net.named_modules() if module._forward_pre_hooks]
    report = convattn.replace(net, "xvolution", where="blocks.[3-6].*.conv_pwl")
    assert hooked
    assert set(hooked) & {*report.skipped, *report.replaced} <= set(report.skipped)
    assert len(net(torch.randn(1, 3, 64, 64))) == 2


WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "SpectralNorm of its weight": nn.utils.spectral_norm,
    "WeightNorm of its weight": nn.utils.weight_norm,
    "L1Unstructured of its weight": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "RandomUnstructured of its bias": lambda conv: prune.random_unstructured(conv, "bias", 0.5),
    "PruningContainer of its weight": lambda conv: prune.l1_unstructured(
        prune.l1_unstructured(conv, "weight", 0.5), "weight", 0.5
    ),
    "Orthogonal of its weight": parametrizations.orthogonal,
}


def frozen_weights(net: nn.Sequential) -> bool:
    return not any(p.requires_grad for p in net[0].parameters())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("no_grad", [False, True])
def test_a_computed_weight_is_reported_and_does_not_freeze_the_operator(kind, no_grad):
    net = small()
    WEIGHTS[kind](net[0])
    with torch.set_grad_enabled(not no_grad):
        _, lines = named(net)
    assert lines == f"  lost, {kind}: 0"
    assert not frozen_weights(net)
    net(torch.randn(2, 8, 9, 7)).sum().backward()


@pytest.mark.parametrize("kind", ["spectral_norm", "weight_norm"])
def test_a_parametrization_is_reported_and_does_not_freeze_the_operator(kind):
    net = small()
    getattr(parametrizations, kind)(net[0])
    with torch.no_grad():
        _, lines = named(net)
    assert lines == f"  lost, {kind.title().replace('_', '')} of its weight: 0"
    assert not frozen_weights(net)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@every_operator
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_kept_weight_is_still_computed(operator, kind):
    net = small().eval()
    WEIGHTS[kind](net[0])
    x = torch.randn(2, 8, 9, 7)
    expected, names = net(x), {name for name, _ in net[0].named_parameters()}
    report = convattn.replace(net, operator, where="0", keep=True)
    assert torch.equal(net(x), expected)
    assert report.replaced["0"].notes == ()
    assert {name for name, _ in net.get_submodule("0.conv").named_parameters()} == names


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, parametrizations.spectral_norm])
def test_a_frozen_convolution_with_a_computed_weight_makes_a_frozen_operator(norm):
    net = small()
    norm(net[0])
    net.requires_grad_(False)
    named(net)
    assert frozen_weights(net)


@pytest.mark.parametrize(("frozen", "trained"), [("weight", "bias"), ("bias", "weight")])
def test_a_convolution_frozen_in_part_makes_an_operator_that_is_trained(frozen, trained):
    net: Any = small()
    getattr(net[0], frozen).requires_grad_(False)
    _, lines = named(net)
    assert lines == f"  all its parameters are trained, although its {frozen} was frozen: 0"
    assert all(p.requires_grad for p in net[0].parameters())


def test_a_convolution_with_its_own_forward_is_skipped():
    for name in ("forward", "_conv_forward", "train"):
        net: Any = small()
        old = getattr(net[0], name)
        setattr(net[0], name, lambda *a, old=old: old(*a))
        assert left(net).startswith(f"its {name} was replaced on the instance")
        kept: Any = small()
        kept[0].forward = lambda x: 2 * x
        x = torch.randn(2, 8, 9, 7)
        expected = kept(x)
        named(kept, keep=True)
        assert torch.equal(kept(x), expected)


def test_a_convolution_that_holds_modules_is_skipped():
    net: Any = small()
    net[0].adapter = nn.Conv2d(8, 8, 1)
    report = convattn.replace(net, "acmix", where="0.adapter")
    assert list(report.replaced) == ["0.adapter"]
    with pytest.raises(ValueError, match=r"0: skipped, it holds modules \(adapter\)"):
        convattn.replace(net, "acmix", where="0")


@pytest.mark.parametrize("prepare", ["prepare", "prepare_qat"])
@pytest.mark.filterwarnings("ignore")
def test_a_convolution_with_quantization_observers_is_skipped(prepare):
    from torch.ao import quantization

    net: Any = small().train(prepare == "prepare_qat")
    net.qconfig = quantization.get_default_qat_qconfig("x86")
    getattr(quantization, prepare)(net, inplace=True)
    with pytest.raises(ValueError, match=r"it holds modules \(.*activation_post_process"):
        convattn.replace(net, "acmix", where="0")


@pytest.mark.parametrize(
    ("conv", "expected"),
    [
        (StdConv2d(8, 8, 3, padding=1), {"the forward of StdConv2d"}),
        (Circular(8, 8, 3, padding=1), {"the forward of Circular"}),
        (Gained(8, 8, 3, padding=1), {"its gain, seen"}),
        (Conv2dSame(8, 8, 3, 2), set()),
        (
            ScaledStdConv2d(8, 8, 3, padding=1),
            {"the forward of ScaledStdConv2d", "its gain"},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_report_names_what_a_subclass_adds(conv, expected):
    report, _ = named(nn.Sequential(conv))
    assert set(report.replaced["0"].notes) == {f"lost, {what}" for what in expected}
    kept, _ = named(nn.Sequential(conv), keep=True)
    assert kept.replaced["0"].notes == ()


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_subclass_with_a_computed_weight_is_replaced(norm, keep):
    net = nn.Sequential(norm(Conv2dSame(8, 8, 3, 2)))
    x = torch.randn(2, 8, 9, 7)
    expected = net(x)  # after the first call the weight is no leaf
    report, _ = named(net, keep=keep)
    assert net(x).shape == expected.shape
    assert len(report.replaced["0"].notes) == (not keep)


def test_subclasses_that_only_pad_differently_need_no_note():
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    report = convattn.replace(
        net,
        "acmix",
        where=lambda name, conv: type(conv) is Conv2dSame and conv.groups == 1,
    )
    assert [made.notes for made in report.replaced.values()] == [()]


@every_operator
@pytest.mark.parametrize("keep", [False, True])
def test_attributes_are_copied_to_the_operator(operator, keep):
    net: Any = small()
    net[0].lr_scale, net[0].type, net[0].mask = 0.1, "nn.Conv2d", torch.ones(3)
    report = convattn.replace(net, operator, where="0", keep=keep)
    assert type(net[0]) is (ConvBeside if keep and operator != "xvolution" else OPERATORS[operator])
    assert (net[0].lr_scale, net[0].type) == (0.1, "nn.Conv2d")
    assert torch.equal(net[0].mask, torch.ones(3))
    assert report.replaced["0"].notes == ()


def test_the_report_names_attributes_that_the_operator_has_too():
    net: Any = small()
    net[0].alpha = 3.0
    _, lines = named(net)
    assert lines == "  lost, its attribute alpha: 0"
    assert isinstance(net[0].alpha, nn.Parameter)


def test_the_report_names_attributes_and_hooks_of_parameters():
    net: Any = small()
    net[0].weight.lr_scale = 0.1
    net[0].bias._no_weight_decay = True
    net[0].weight.register_hook(lambda grad: grad)
    net[0].bias.register_post_accumulate_grad_hook(lambda p: None)
    report, _ = named(net)
    assert report.replaced["0"].notes == (
        "lost, lr_scale of its weight",
        "lost, 1 gradient hook of its weight",
        "lost, _no_weight_decay of its bias",
        "lost, 1 gradient hook of its bias",
    )


def test_the_report_names_a_compiled_convolution():
    net: Any = small()
    net[0].compile(backend="eager")
    assert named(net)[1] == "  lost, its compile(): 0"


def test_a_compiled_network_needs_no_note():
    net: Any = small()
    torch.compile(net, backend="eager")(torch.randn(2, 8, 9, 7)).sum().backward()
    assert named(net)[1] == ""


def test_the_report_prints_one_line_per_note():
    net = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(12)))
    for conv in list(net)[:10]:
        parametrizations.weight_norm(conv)
    report = convattn.replace(net, "acmix", where="*")
    assert str(report).splitlines()[13:] == [
        "  lost, WeightNorm of its weight: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    ]
    assert sum(bool(made.notes) for made in report.replaced.values()) == 10


def test_a_function_that_keeps_the_convolution_needs_no_loss_note():
    net: Any = small()
    conv = net[0]
    conv.register_forward_hook(lambda *a: None)
    report = convattn.replace(net, lambda conv: nn.Sequential(conv, nn.ReLU()), where="0")
    assert net[0][0] is conv
    assert report.replaced["0"].notes == (
        "its hooks (1 forward hook) get the outputs of the convolution alone",
    )
    convattn.replace(net, lambda conv: conv, where="0.0")
    assert net[0][0] is conv


def test_a_plain_convolution_has_no_notes():
    for conv in (nn.Conv2d(8, 8, 3, padding=1), nn.LazyConv2d(8, 3, padding=1)):
        conv(torch.randn(1, 8, 9, 9))
        assert named(nn.Sequential(conv))[1] == ""
    skipped: Any = nn.utils.skip_init(nn.Conv2d, 8, 8, 3, padding=1)
    assert named(nn.Sequential(skipped))[1] == ""
