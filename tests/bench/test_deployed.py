from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import convattn
from convattn.bench import deployed
from convattn.bench.deployed import count_norms, deploy, fold_peer, randomize

SIZE = (1, 3, 64, 64)


def random(model: nn.Module) -> Any:
    return randomize(model, torch.randn(2, 3, 64, 64))


def test_batch_norms_of_a_resnet_are_folded_exactly():
    model = random(timm.create_model("resnet18"))
    folded = deploy(model, torch.randn(SIZE), ours=False)
    assert count_norms(model) == 20
    assert count_norms(folded) == 0
    assert {type(m) for m in folded.modules()} & {nn.Identity}


def test_a_norm_with_an_activation_keeps_it():
    model = random(timm.create_model("efficientnet_b0"))
    folded = deploy(model, torch.randn(SIZE), ours=False)
    assert count_norms(folded) == 0
    silus = [sum(isinstance(m, nn.SiLU) for m in net.modules()) for net in (model, folded)]
    assert silus[0] == silus[1] > 0


def test_layer_scales_of_a_convnext_are_folded_exactly():
    model = random(timm.create_model("convnext_atto", ls_init_value=1e-6))
    for name, bias in model.named_parameters():
        if name.endswith("fc2.bias"):  # initially zero, which no scale changes
            nn.init.normal_(bias)
    folded = deploy(model, torch.randn(SIZE), ours=False)
    gammas = [name for name, _ in folded.named_parameters() if name.endswith("gamma")]
    assert gammas == []
    assert any(name.endswith("gamma") for name, _ in model.named_parameters())


def test_a_norm_without_a_convolution_before_it_is_not_folded():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert count_norms(fold_peer(random(model))) == 1


def test_a_norm_after_a_transposed_convolution_is_not_folded():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 1), nn.BatchNorm2d(4))
    assert count_norms(deploy(random(model), torch.randn(SIZE), ours=False)) == 1


def test_a_norm_is_not_folded_if_the_convolution_has_two_users():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    model = random(Twice())
    assert count_norms(deploy(model, torch.randn(SIZE), ours=False)) == 1


def test_a_network_that_cannot_be_traced_keeps_its_norms():
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x)) if x.sum() > -1e9 else x

    assert count_norms(fold_peer(random(Untraceable()))) == 1


@pytest.mark.parametrize("name", ["glnet_nano", "acmix_resnet_nano", "xvolution_resnet_nano"])
def test_models_of_this_package_are_folded_in_a_copy(name):
    model = random(convattn.create_model(name))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = deploy(model, torch.randn(SIZE), ours=True)
    assert folded is not model
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_wrong_folding_raises(monkeypatch: pytest.MonkeyPatch):
    def wrong(conv, norm):
        return conv

    monkeypatch.setattr(deployed, "fuse_conv_bn_eval", wrong)
    model = random(timm.create_model("resnet18"))
    with pytest.raises(
        RuntimeError, match="outputs of the folded ResNet are not those of the model"
    ):
        deploy(model, torch.randn(SIZE), ours=False)


def test_randomize_gives_norms_and_zero_weights_values():
    images = torch.randn(2, 3, 64, 64)
    model: Any = randomize(timm.create_model("resnet18"), images)
    mean = model.conv1(images).mean((0, 2, 3))  # the statistics are those of all images
    torch.testing.assert_close(model.bn1.running_mean, mean, rtol=1e-4, atol=1e-5)
    first = model.layer1[0]
    assert first.bn2.weight.min() > 0.5  # timm initializes the last norm of a block with zero
    assert first.bn2.running_mean.abs().max() > 0.1
    assert first.bn2.momentum == 0.1
    assert random(timm.create_model("mixer_s16_224", img_size=64)).head.weight.any()


def test_a_randomized_deep_network_has_finite_outputs():
    model = random(convattn.create_model("xvolution_resnet34"))
    assert model(torch.randn(SIZE)).isfinite().all()
