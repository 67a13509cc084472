"""segmentation-models-pytorch builds the backbones as encoders by timm's names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import convattn

smp: Any = pytest.importorskip("segmentation_models_pytorch")

# only DPT's decoder supports the equal map sizes of a plain vision transformer
NANO = [name for name in convattn.list_models("*_nano") if "deit" not in name]
LARGE = ["glnet_4g", "acmix_resnet50", "acmix_swin_tiny", "acmix_pvt_tiny", "san10", "acmix_san10"]


@pytest.mark.parametrize("name", NANO)
def test_unet_segments_images_whose_sides_are_odd_multiples_of_32(name):
    model = smp.Unet(f"tu-{name}", encoder_weights=None, classes=3)
    images = torch.rand(2, 3, 96, 160)
    masks = model(images)
    assert masks.shape == (2, 3, 96, 160)
    # the image, an empty map at stride 2, then strides 4, 8, 16 and 32
    features: Any = convattn.create_model(name, features_only=True)
    assert model.encoder.out_channels == [3, 0, *features.feature_info.channels()]
    masks.mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.parametrize(
    "readout", ["cat", *(pytest.param(r, marks=pytest.mark.slow) for r in ("add", "ignore"))]
)
@pytest.mark.parametrize("name", ["acmix_deit_nano", "acmix_pvt_nano", "glnet_nano"])
def test_dpt_uses_maps_and_tokens(name, readout):
    model = smp.DPT(f"tu-{name}", encoder_weights=None, decoder_readout=readout, classes=3)
    masks = model(torch.rand(2, 3, 64, 96))
    assert masks.shape == (2, 3, 64, 96)
    masks.mean().backward()
    token = {n: p for n, p in model.encoder.named_parameters() if n.endswith("cls_token")}
    assert len(token) == (0 if "glnet" in name else 1)
    assert all(p.grad.any() for p in token.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NANO)
def test_depth_and_channels_can_be_chosen(name):
    decoder = (32, 16, 8)
    model = smp.Unet(
        f"tu-{name}",
        encoder_weights=None,
        encoder_depth=3,
        decoder_channels=decoder,
        in_channels=1,
    ).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 1, 40, 56)).shape == (1, 1, 40, 56)
    # unused stages are not built
    full = smp.Unet(f"tu-{name}", encoder_weights=None)
    assert count(model.encoder) < count(full.encoder)


def count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LARGE if name in convattn.list_models()])
def test_backbones_of_the_papers_are_encoders(name):
    with torch.device("meta"):
        model = smp.Unet(f"tu-{name}", encoder_weights=None)
        assert model(torch.empty(2, 3, 224, 288)).shape == (2, 1, 224, 288)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["UnetPlusPlus", "FPN", "Linknet", "Segformer", "UPerNet"])
def test_other_decoders(decoder):
    model = getattr(smp, decoder)("tu-glnet_nano", encoder_weights=None).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 128, 160)).shape == (1, 1, 128, 160)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("decoder", ["DeepLabV3", "DeepLabV3Plus"])
def test_dilated_encoders(decoder, stride):
    build = getattr(smp, decoder)
    options = {"encoder_weights": None, "encoder_output_stride": stride}
    model = build("tu-acmix_resnet_nano", **options).eval()
    with torch.no_grad():
        assert model.encoder(torch.rand(1, 3, 64, 96))[-1].shape[2:] == (64 // stride, 96 // stride)
        assert model(torch.rand(1, 3, 64, 96)).shape == (1, 1, 64, 96)
    with pytest.raises(ValueError, match="GLNet has output stride 32 only, got output_stride="):
        build("tu-glnet_nano", **options)
