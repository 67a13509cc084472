from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.utils import reparameterize_model
from torch import nn

import convattn
from convattn import ACmix, GLMix, XVolution
from convattn.layers import ACmixConv2d, ConvBeside
from tests.compare import assert_close
from tests.golden import relative_error
from tests.layers.properties import randomise

OPERATORS: dict[str, Any] = {"acmix": ACmix, "xvolution": XVolution, "glmix": GLMix}
every_operator = pytest.mark.parametrize("operator", OPERATORS)


def narrow_resnet(**arguments: Any) -> nn.Module:
    model = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck,
        [1, 1, 1, 1],
        width_per_group=8,
        num_classes=5,
        **arguments,
    )
    return randomised_norms(model)


def narrow_timm_resnet() -> nn.Module:
    model = timm.create_model(
        "resnet18", channels=(8, 16, 24, 32), stem_width=8, num_classes=5, layers=(1, 1, 2, 1)
    )
    return randomised_norms(model)


def randomised_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def small(**changes: Any) -> nn.Sequential:
    options: dict[str, Any] = {"kernel_size": 3, "padding": 1, **changes}
    return nn.Sequential(nn.Conv2d(8, 8, **options), nn.BatchNorm2d(8), nn.ReLU())


@every_operator
@pytest.mark.parametrize("build", [narrow_resnet, narrow_timm_resnet])
def test_a_network_computes_with_the_operator_in_place(build, operator):
    model: Any = build().eval()
    shapes = {}
    for name in ("layer2", "layer3", "layer4"):
        module = model.get_submodule(name)
        shapes[name] = module
    x = torch.randn(2, 3, 45, 64)
    before = _maps(model, shapes, x)
    report = convattn.replace(model, operator, where="layer[34].*.conv2")
    assert list(report.replaced) == [
        f"{stage}.{i}.conv2" for stage in ("layer3", "layer4") for i in range(len(shapes[stage]))
    ]
    assert not report.skipped
    assert all(type(model.get_submodule(n)) is OPERATORS[operator] for n in report.replaced)
    assert _maps(model, shapes, x) == before
    model.train()(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def _maps(model: nn.Module, modules: dict[str, nn.Module], x: torch.Tensor) -> list[torch.Size]:
    seen: list[torch.Size] = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
        for m in modules.values()
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return seen


@every_operator
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("build", [narrow_resnet, narrow_timm_resnet])
def test_keep_does_not_change_the_outputs(build, training, operator):
    model = build().train(training)
    changed = copy.deepcopy(model)
    report = convattn.replace(changed, operator, where="layer?.*.conv*", keep=True)
    assert len(report.replaced) > 8
    for size in [(64, 64), (45, 70)]:
        x = torch.randn(2, 3, *size)
        assert torch.equal(changed(x), model(x))
    assert all(m.training is training for m in changed.modules())


@pytest.mark.parametrize(
    ("operator", "options"),
    [("acmix", {}), ("acmix", {"attention": "patchwise"}), ("xvolution", {}), ("glmix", {})],
)
def test_keep_does_not_change_large_maps_in_float16(operator, options):
    """The operator may overflow in float16 where the convolution does not."""
    torch.manual_seed(0)
    model = small().half().eval()
    x = 2000 * torch.randn(1, 8, 20, 24).half()
    expected = model(x)
    assert expected.isfinite().all()
    convattn.replace(model, operator, where="0", keep=True, **options)
    assert torch.equal(model(x), expected)


@every_operator
def test_keep_keeps_the_same_convolution(operator):
    model = small()
    conv = model[0]
    convattn.replace(model, operator, where="0", keep=True)
    kept: Any = model[0]
    assert kept.conv is conv
    assert (kept.in_channels, kept.out_channels) == (8, 8)
    assert type(kept) is (XVolution if operator == "xvolution" else ConvBeside)


@every_operator
def test_the_operator_of_a_kept_convolution_is_trained(operator):
    torch.manual_seed(0)
    model = small(bias=False)
    convattn.replace(model, operator, where="0", keep=True)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(4, 8, 9, 7)
    for step in range(2):
        optimiser.zero_grad()
        model(x).square().mul(torch.rand(4, 8, 9, 7)).sum().backward()
        if step == 0:  # the factor starts at zero, so only the factor gets a gradient at first
            start = "0.attn_norm.weight" if operator == "xvolution" else "0.gamma"
            assert model.get_parameter(start).grad is not None
            assert model.get_parameter(start).grad.all()  # type: ignore[union-attr]
        optimiser.step()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [n for n in still if not n.endswith("pos_proj.bias")] == []


@every_operator
def test_a_kept_frozen_convolution_stays_frozen_and_its_operator_is_trained(operator):
    model = small().requires_grad_(False)
    convattn.replace(model, operator, where="0", keep=True)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert not any(n.startswith(("0.conv.", "1.")) for n in trainable)
    frozen = small().requires_grad_(False)
    convattn.replace(frozen, operator, where="0")
    assert not any(p.requires_grad for p in frozen.parameters())


@every_operator
@pytest.mark.parametrize("keep", [False, True])
def test_device_dtype_mode_and_memory_format_stay(operator, keep):
    model = small().to(torch.bfloat16).to(memory_format=torch.channels_last).eval()
    convattn.replace(model, operator, where="0", keep=keep)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(m.training for m in model.modules())
    wide = [p for p in model[0].parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    meta = small(device="meta", dtype=torch.float64)
    convattn.replace(meta, operator, where="0", keep=keep)
    assert {(p.device.type, p.dtype) for p in meta[0].parameters()} == {("meta", torch.float64)}


@every_operator
@pytest.mark.parametrize("keep", [False, True])
def test_changed_networks_are_copied_saved_and_traced(operator, keep, tmp_path):
    model: Any = narrow_timm_resnet().eval()
    convattn.replace(model, operator, where="layer3.*.conv2", keep=keep)
    x = torch.randn(2, 3, 64, 64)
    y = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), y)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    again = narrow_timm_resnet().eval()
    convattn.replace(again, operator, where="layer3.*.conv2", keep=keep)
    again.load_state_dict(torch.load(tmp_path / "model.pth"))
    assert torch.equal(again(x), y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of PyTorch advise against TorchScript
        traced = torch.jit.trace(model, x)
    assert_close(traced(x), y, torch.float32)
    graph = timm.models.FeatureGraphNet(model, (3,))
    assert_close(graph(x)[0], model.forward_intermediates(x, [3])[1][0], torch.float32)


@every_operator
@pytest.mark.parametrize("keep", [False, True])
def test_the_deployed_form_of_a_changed_network_computes_the_same(operator, keep):
    model = narrow_timm_resnet()
    convattn.replace(model, operator, where="layer3.*.conv2", keep=keep)
    randomise(model).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert relative_error(reparameterize_model(model)(x), model(x)) < 1e-10


@every_operator
@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_changed_networks_compile_without_graph_breaks(operator, dynamic):
    torch._dynamo.reset()
    model = small()
    convattn.replace(model, operator, where="0", keep=True)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in [(9, 7), (8, 10)]:
        x = torch.randn(2, 8, *size)
        assert_close(compiled(x), model(x), torch.float32)


def test_where_can_be_a_function():
    model = narrow_resnet()
    seen = []

    def strided(name: str, module: Any) -> bool:
        seen.append(name)
        return module.stride == (2, 2) and module.kernel_size == (3, 3)

    report = convattn.replace(model, "glmix", where=strided)
    assert list(report.replaced) == [f"layer{i}.0.conv2" for i in (2, 3, 4)]
    assert "layer1.0.bn1" not in seen
    assert "conv1" in seen


def test_options_go_to_the_operator():
    model: Any = small()
    convattn.replace(
        model, "acmix", where="0", attention="global", num_heads=2, kernel_size=5, mix="sum"
    )
    assert (model[0].attn.num_heads, model[0].kernel_size, model[0].mix) == (2, 5, "sum")


@pytest.mark.parametrize("operator", [ACmixConv2d, XVolution])
def test_operators_can_be_classes(operator):
    model = small()
    convattn.replace(model, operator, where="0", num_heads=2)
    assert type(model[0]) is operator


def test_operators_can_be_functions():
    model = small()
    convattn.replace(model, lambda conv: nn.Conv2d(conv.in_channels, 8, 1), where="0")
    assert model[0].kernel_size == (1, 1)
    kept = small()
    expected = kept(torch.ones(2, 8, 5, 5))
    convattn.replace(kept, lambda conv: nn.AvgPool2d(3, 1, 1), where="0", keep=True)
    assert torch.equal(kept(torch.ones(2, 8, 5, 5)), expected)
    assert isinstance(kept[0], ConvBeside)


def test_the_module_of_a_function_gets_dtype_and_mode_of_the_convolution():
    model = small(dtype=torch.float64).eval()
    convattn.replace(model, lambda conv: nn.Sequential(nn.Conv2d(8, 8, 1)), where="0")
    assert {p.dtype for p in model[0].parameters()} == {torch.float64}
    assert not any(module.training for module in model.modules())


def test_the_report_names_replaced_and_skipped_convolutions():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 2),
        nn.ConvTranspose2d(8, 8, 2),
    )
    left = list(model)[1:]
    report = convattn.replace(model, "glmix", where="*")
    assert list(model)[1:] == left
    assert list(report.replaced) == ["0"]
    assert report.replaced["0"].old.startswith("Conv2d(8, 8, kernel_size=(3, 3)")
    assert report.replaced["0"].new.startswith("GLMix(8, 8, kernel_size=3, stride=1")
    assert "groups must be 1, got groups=8" in report.skipped["1"]
    assert "kernel_size must be odd, got 2" in report.skipped["2"]
    assert report.skipped["3"] == "only nn.Conv2d can be replaced, not ConvTranspose2d"
    lines = str(report).splitlines()
    assert lines[0] == "replaced 1, skipped 3"
    assert lines[1].startswith("  0: Conv2d(8, 8, ")
    assert lines[2].startswith("  1: skipped, an operator mixes all channels")
    with pytest.raises(FrozenInstanceError):
        report.replaced = {}  # type: ignore[misc]


def test_nothing_matched_shows_the_nearest_names():
    model = narrow_resnet()
    with pytest.raises(ValueError, match=r"no convolution is called 'layer3\.\*\.conv4'; .*layer3"):
        convattn.replace(model, "acmix", where="layer3.*.conv4")
    with pytest.raises(
        ValueError, match=r"called 'layer1\.0\.bn1', but BatchNorm2d 'layer1\.0\.bn1'; "
    ):
        convattn.replace(model, "acmix", where="layer1.0.bn1")
    convattn.replace(model, "acmix", where="layer3.0.conv2")
    model = narrow_resnet()
    with pytest.raises(ValueError, match=r"none of the 17 convolutions; the first .* conv1, layer"):
        convattn.replace(model, "acmix", where=lambda name, module: False)
    with pytest.raises(ValueError, match="the model has no convolution"):
        convattn.replace(nn.Sequential(nn.Linear(3, 3)), "acmix", where="*")


def test_an_error_gives_the_reasons_if_all_matches_are_skipped():
    model = timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    with pytest.raises(
        ValueError, match=r"skipped 4, .*groups=8 .*: stages\.0\.blocks\.0\.conv_dw, stages"
    ):
        convattn.replace(model, "acmix", where="*conv_dw")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"operator": "acmixx"}, ValueError, "unknown operator 'acmixx'; did you mean 'acmix'"),
        ({"colour": 3}, TypeError, "colour"),
        ({"stride": 3}, TypeError, "'stride': it is that of the convolution"),
        ({"operator": nn.ReLU()}, TypeError, "got ReLU"),
        ({"operator": lambda conv: None}, TypeError, "must return a module, got NoneType"),
        ({"operator": lambda conv: conv, "slots": 3}, TypeError, "slots would be ignored"),
        ({"where": 3}, TypeError, "where must be a pattern or a function"),
        ({"num_heads": 3}, ValueError, "out_chans=8, num_heads=3|dim=8, num_heads=3"),
    ],
)
def test_wrong_arguments_change_nothing(arguments, error, message):
    model = small()
    before = list(model.modules())
    with pytest.raises(error, match=message):
        convattn.replace(model, **{"operator": "acmix", "where": "*", **arguments})
    assert list(model.modules()) == before


def test_an_error_while_operators_are_built_changes_nothing():
    model = nn.Sequential(*small(), *small())
    before = list(model.modules())
    made: list[nn.Conv2d] = []

    def second_fails(conv: nn.Conv2d) -> nn.Module:
        made.append(conv)
        if len(made) == 2:
            raise RuntimeError("out of memory")
        return ACmix.from_conv2d(conv)

    with pytest.raises(RuntimeError, match="out of memory"):
        convattn.replace(model, second_fails, where="*")
    assert list(model.modules()) == before


def test_a_convolution_cannot_replace_itself():
    with pytest.raises(ValueError, match=r"itself a convolution and .*ACmix\.from_conv2d"):
        convattn.replace(nn.Conv2d(8, 8, 3, padding=1), "acmix", where="*")


def test_a_network_without_modules_of_ultralytics_does_not_import_it():
    code = (
        "import sys, torchvision, convattn\n"
        "model = torchvision.models.squeezenet1_1()\n"
        "convattn.replace(model, 'xvolution', where='features.3.expand3x3', keep=True)\n"
        "print(sorted({'ultralytics', 'convattn.integrations.ultralytics'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
