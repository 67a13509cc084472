"""Deployed forms compute what the trained forms compute, for every registered model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from timm.layers import LayerScale2d, create_feature_extractor
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import convattn
from convattn import ACmix
from convattn.layers import ConvMlp
from convattn.layers.attention.parts import PatchwiseAttention
from convattn.layers.block import PreNormBlock
from tests.golden import relative_error
from tests.layers.properties import randomise
from tests.models.test_contract import LAYOUTS

NANO = convattn.list_models("*nano*")
NORMED = [name for name in NANO if "resnet" in name or "glnet" in name]  # all norms fold in them

# Arguments that change the smallest model of a family.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((f"glnet_nano{path}", {"layer_scale": 0.1}) for path in ("", "_conv", "_attn")),
    *(("glnet_nano", {"global_pool": pool}) for pool in ("max", "avgmax", "catavgmax")),
    ("glnet_nano", {"stem": "patch"}),
    ("glnet_nano", {"token_labelling": True}),
    ("glnet_nano", {"num_classes": 0}),
    ("glnet_nano", {"num_classes": 0, "global_pool": ""}),
    ("glnet_nano", {"slot_init": "learned"}),
    ("glnet_nano", {"branches": "sequential"}),
    ("baseline_resnet_nano", {"block": "basic", "stem_width": 0, "output_stride": 8}),
    *(("acmix_resnet_nano", {"mix": mix}) for mix in ("complement", "learned_alpha", "sum")),
    *(("acmix_resnet_nano", {"shift": shift}) for shift in ("random", "fixed", "tensor")),
    *(("acmix_resnet_nano", {"attention": a}) for a in ("window", "global", "patchwise")),
    ("acmix_resnet_nano", {"block": "basic", "output_stride": 16}),
    ("xvolution_resnet_nano", {"block": "basic", "stages": (1, 2, 3, 4)}),
    ("xvolution_resnet_nano", {"weighting": False, "attention": "sa", "output_stride": 16}),
]

FAMILIES = convattn.list_models("*_nano")


def _id(value: str | dict[str, Any]) -> str:
    return value if isinstance(value, str) else "-".join(map(str, value.values())) or "default"


# The smallest model of each family; its variants are slow tests.
every_model = pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in FAMILIES),
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in sorted({*NANO} - {*FAMILIES})),
        *(pytest.param(*option, marks=pytest.mark.slow) for option in OPTIONS),
    ],
    ids=_id,
)
every_family = pytest.mark.parametrize("name", FAMILIES)


def trained(name: str, **arguments: Any) -> Any:
    """Return a model with random norm statistics, scales and factors."""
    model = convattn.create_model(name, **{"num_classes": 5, **arguments})
    return randomise(model).double().eval()


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, dtype=torch.float64)


def batch_norms(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]


class Calls(TorchDispatchMode):
    """Records the operators that run, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def calls(model: nn.Module, x: Tensor) -> list[str]:
    with torch.no_grad(), Calls() as seen:
        model(x)
    return seen.names


@every_model
def test_the_deployed_form_computes_the_same(name, arguments):
    model = trained(name, **arguments)
    before = copy.deepcopy(model.state_dict())
    deployed = convattn.reparameterize(model)
    again = convattn.reparameterize(deployed)
    for size in [(64, 64), (33, 47)]:
        x = images(*size)
        assert relative_error(deployed(x), model(x)) < 1e-10
        assert relative_error(again(x), model(x)) < 1e-10
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@every_model
def test_features_heads_and_maps_of_the_deployed_form_are_the_same(name, arguments):
    model = trained(name, **arguments)
    deployed = convattn.reparameterize(model)
    x = images(64, 64)
    features = model.forward_features(x)
    assert relative_error(deployed.forward_features(x), features) < 1e-10
    for pre_logits in (False, True):
        wanted = model.forward_head(features, pre_logits=pre_logits)
        given = deployed.forward_head(features, pre_logits=pre_logits)
        assert relative_error(given, wanted) < 1e-10
    final, maps = model.forward_intermediates(x, norm=True)
    deployed_final, deployed_maps = deployed.forward_intermediates(x, norm=True)
    for given, wanted in zip([deployed_final, *deployed_maps], [final, *maps], strict=True):
        assert relative_error(given, wanted) < 1e-10


@every_model
def test_timms_reparameterize_model_computes_the_same(name, arguments):
    model = trained(name, **arguments)
    deployed = reparameterize_model(model)
    x = images(48, 33)
    assert relative_error(deployed(x), model(x)) < 1e-10
    # timm does not reparameterize the root; convattn.reparameterize completes it
    assert relative_error(convattn.reparameterize(deployed)(x), model(x)) < 1e-10


@every_family
def test_feature_maps_are_the_same(name):
    model = convattn.create_model(name, features_only=True)
    randomise(model).double().eval()
    deployed = convattn.reparameterize(model)
    x = images(64, 64)
    for given, wanted in zip(deployed(x), model(x), strict=True):
        assert relative_error(given, wanted) < 1e-10
    if name in NORMED:
        assert not batch_norms(deployed)


@every_family
def test_maps_of_the_deployed_form_can_be_taken_from_a_traced_graph(name):
    model = trained(name)
    deployed = convattn.reparameterize(model)
    classifier = "fc" if "resnet" in name else "head"
    nodes = {deployed.feature_info[-1]["module"]: "map", classifier: "logits"}
    graph = create_feature_extractor(deployed, nodes)
    x = images(64, 64)
    given = graph(x)
    assert relative_error(given["map"], model.forward_intermediates(x)[1][-1]) < 1e-10
    assert relative_error(given["logits"], model(x)) < 1e-10


@pytest.mark.parametrize("name", [name for name in NANO if "glnet" in name])
def test_a_hook_on_the_classifier_of_the_deployed_form_is_called(name):
    deployed, seen = convattn.reparameterize(trained(name)), []
    deployed.head.register_forward_hook(lambda *call: seen.append(call[2]))
    y = deployed(images(64, 64))
    assert torch.equal(seen[0], y)


@every_model
def test_the_deployed_form_has_nothing_left_to_fold(name, arguments):
    deployed = convattn.reparameterize(trained(name, **arguments))
    assert all(_must_stay(deployed, norm) for norm in batch_norms(deployed))
    for module in deployed.modules():
        if isinstance(module, ACmix):
            assert not isinstance(module.alpha, nn.Parameter)
            assert not isinstance(module.beta, nn.Parameter)
        if isinstance(module, PreNormBlock | ConvMlp):
            assert module.folded
            assert not any(isinstance(m, LayerScale2d) for m in module.children())


def _must_stay(model: nn.Module, norm: str) -> bool:
    """Whether a norm precedes a ReLU without a layer before it, or follows one without a shift."""
    if norm.endswith(("attn.mlp.0", "norm1")) or ("stages" in norm and norm.endswith("norm.0")):
        return True
    before = norm.replace("bn", "conv").replace("norm2", "mixer")
    mixer = model.get_submodule(before)
    if not isinstance(mixer, ACmix):
        return False
    weights_add_up = not isinstance(mixer.attn, PatchwiseAttention)
    return mixer.shift == "tensor" or (mixer.mix == "attention" and not weights_add_up)


@pytest.mark.parametrize("name", NORMED)
def test_the_deployed_form_computes_no_norm(name):
    model = trained(name)
    x = images(64, 64)
    before, after = calls(model, x), calls(convattn.reparameterize(model), x)
    norms = [call for call in before if "batch_norm" in call]
    assert len(norms) == len(batch_norms(model))
    assert not any("batch_norm" in call for call in after)
    assert len(after) < len(before) - len(norms) + 2  # GLNet's last norm works on the means


@pytest.mark.parametrize("name", convattn.list_models("*_nano"))
def test_the_deployed_form_is_close_in_half_precision(name):
    model = trained(name).bfloat16()
    deployed = convattn.reparameterize(model)
    exact = copy.deepcopy(model).double()
    x = images(64, 64).bfloat16()
    wanted = exact(x.double())
    # about the error of the trained form, and the rounding of the folded weights
    bound = 2 * relative_error(model(x), wanted) + 0.05
    with torch.inference_mode():  # other kernels run
        inferred = [deployed(x.contiguous(memory_format=layout)) for layout in LAYOUTS]
    for found in (deployed(x), *inferred):
        assert found.dtype == torch.bfloat16
        assert relative_error(found, wanted) < bound


@every_family
def test_the_deployed_form_is_copied_and_pickled(name):
    deployed = convattn.reparameterize(trained(name))
    x = images(48, 32)
    y = deployed(x)
    for other in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(other(x), y)


@every_family
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*deprecated:FutureWarning")
def test_the_deployed_form_is_traced(name):
    deployed = convattn.reparameterize(trained(name))
    x = images(48, 32)
    traced = torch.jit.trace(deployed, x, check_trace=False)  # compared on another image
    # A traced graph computes scales from sizes in single precision.
    assert relative_error(traced(2 * x), deployed(2 * x)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glnet_nano", "acmix_resnet_nano"])
def test_the_deployed_form_compiles_in_one_graph(name):
    deployed = convattn.reparameterize(trained(name).float())
    x = images(64, 64).float()
    with torch.no_grad():
        compiled = torch.compile(deployed, fullgraph=True)
        assert relative_error(compiled(x), deployed(x)) < 1e-3


@every_family
def test_the_deployed_form_is_built_on_the_meta_device(name):
    deployed = convattn.reparameterize(convattn.create_model(name, num_classes=5, device="meta"))
    assert deployed(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 5)


@every_family
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_deployed_file_is_loaded_into_a_deployed_model(name, device):
    """Build, reparameterize and load, as another machine does."""
    deployed = convattn.reparameterize(trained(name).float())
    fresh = convattn.create_model(name, num_classes=5, device=device)
    fresh = convattn.reparameterize(fresh)
    fresh.load_state_dict(deployed.state_dict(), assign=device == "meta")
    x = images(48, 33).float()
    assert torch.equal(fresh(x), deployed(x))


@pytest.mark.parametrize("name", NORMED)
def test_a_trained_model_refuses_a_deployed_file(name):
    deployed = convattn.reparameterize(trained(name))
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*running_mean"):
        trained(name).load_state_dict(deployed.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(convattn.list_models()) - set(NANO)))
def test_every_registered_model_deploys_exactly(name):
    model = convattn.create_model(name, num_classes=5)
    # random matrices of full size overflow in deep models
    halves = {key: value / 2 for key, value in model.state_dict().items() if value.dim() > 1}
    randomise(model).load_state_dict(halves, strict=False)
    model.double().eval()
    deployed = convattn.reparameterize(model)
    x = images(32, 64)[:1]
    with torch.inference_mode():
        assert relative_error(deployed(x), model(x)) < 1e-10
    if "resnet" in name or "glnet" in name:
        assert not batch_norms(deployed)
