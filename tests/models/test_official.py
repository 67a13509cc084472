from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import convattn
from convattn import ACmix, GLMixBlock
from tests.golden import Fixture, relative_error


def published() -> dict[str, Tensor]:
    return Fixture("glnet_demo").state(torch.float32)


@pytest.fixture
def model() -> Any:
    return convattn.create_model("glnet_nano", num_classes=10).eval()


def matches(model: nn.Module) -> bool:
    golden = Fixture("glnet_demo")
    with torch.no_grad():
        return relative_error(model(golden.images(torch.float32)), golden.output()) < 1e-3


@pytest.mark.parametrize("wrapper", ["", "model", "model_ema", "state_dict"])
def test_reads_the_authors_wrappings(model, tmp_path, wrapper):
    path = tmp_path / "weights.pth"
    torch.save({wrapper: published(), "epoch": 3} if wrapper else published(), path)
    report = convattn.load_official(model, path)
    assert (report.wrapper, report.source) == (wrapper, str(path))
    assert matches(model)


@pytest.mark.parametrize(
    ("architecture", "key"), [("glnet_4g", "model"), ("glnet_16g", "model_ema")]
)
def test_the_weights_that_the_authors_publish_are_the_default(model, tmp_path, architecture, key):
    zeros = {k: torch.zeros_like(v) for k, v in published().items()}
    other = "model" if key == "model_ema" else "model_ema"
    torch.save({other: zeros, key: published()}, tmp_path / "both.pth")
    model.pretrained_cfg = {**model.pretrained_cfg, "architecture": architecture}
    assert convattn.load_official(model, tmp_path / "both.pth").wrapper == key
    assert matches(model)
    convattn.load_official(model, tmp_path / "both.pth", wrapper=other)
    assert not model.head.fc.weight.any()


def test_reads_safetensors_and_state_dicts(model, tmp_path):
    state = {k: v.contiguous() for k, v in published().items()}
    save_file(state, tmp_path / "weights.safetensors")
    convattn.load_official(model, tmp_path / "weights.safetensors")
    assert matches(model)
    again = convattn.create_model("glnet_nano", num_classes=10).eval()
    assert convattn.load_official(again, state).sha256 == ""
    assert matches(again)


def test_reports_and_prints_the_checksum(model, tmp_path, capsys):
    path: Path = tmp_path / "weights.pth"
    torch.save({"model": published()}, path)
    report = convattn.load_official(model, path)
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert report.entries == len(published())
    assert report.sha256 in capsys.readouterr().out


def test_prefixes_of_parallel_training_are_removed(model):
    convattn.load_official(model, {f"module.{k}": v for k, v in published().items()})
    assert matches(model)


def test_counters_masks_and_integer_buffers_may_be_missing(model):
    extra = {
        "norm.num_batches_tracked": torch.tensor(7),
        "stages.0.attn_mask": torch.zeros(3, 3),
        "stages.0.relative_position_index": torch.zeros(3, 3, dtype=torch.long),
    }
    report = convattn.load_official(model, published() | extra)
    assert report.ignored == ("stages.0.attn_mask", "stages.0.relative_position_index")
    assert model.norm.num_batches_tracked.item() == 7
    assert matches(model)


def test_missing_additional_and_misshapen_entries_raise_and_change_nothing(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = published()
    del state["norm.bias"]
    with pytest.raises(ValueError, match=r"1 missing \(norm\.bias\)"):
        convattn.load_official(model, state)
    with pytest.raises(ValueError, match=r"1 unexpected \(strange\)"):
        convattn.load_official(model, published() | {"strange": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"head\.fc\.weight \(9, 128\) instead of \(10, 128\)"):
        convattn.load_official(model, published() | {"head.weight": torch.zeros(9, 128)})
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_another_variant_is_refused():
    with pytest.raises(ValueError, match="does not hold the weights of this GLNet"):
        convattn.load_official(convattn.create_model("glnet_nano", stem="patch"), published())


class Optimiser:
    """An object in a pickle that is not a tensor."""


def test_pickle_that_needs_code_is_refused_by_name(model, tmp_path):
    path = tmp_path / "unsafe.pth"
    torch.save({"model": published(), "args": Optimiser()}, path)
    with pytest.raises(
        ValueError, match=r"unsafe\.pth contains objects other than tensors.*Optimiser"
    ):
        convattn.load_official(model, path)


def test_missing_file_raises(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no_such\.pth"):
        convattn.load_official(model, tmp_path / "no_such.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"model": {"epoch": 3}}])
def test_file_without_weights_is_refused(model, tmp_path, content):
    torch.save(content, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"empty\.pth holds no weights"):
        convattn.load_official(model, tmp_path / "empty.pth")


def test_a_missing_wrapper_is_refused(model, tmp_path):
    torch.save({"model": published()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds no weights under 'ema'"):
        convattn.load_official(model, tmp_path / "weights.pth", wrapper="ema")


def test_timm_starts_backbones_and_other_classes_from_a_published_file(model, tmp_path):
    torch.save({"model": published()}, tmp_path / "weights.pth")
    convattn.load_official(model, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 10}

    def start(**arguments: Any) -> Any:
        return convattn.create_model(
            "glnet_nano", pretrained=True, pretrained_cfg_overlay=overlay, **arguments
        ).eval()

    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(start()(x), model(x))
    torch.testing.assert_close(
        start(features_only=True)(x), model.forward_intermediates(x, intermediates_only=True)
    )
    other = start(num_classes=3)
    assert other(x).shape == (1, 3)
    torch.testing.assert_close(other.forward_features(x), model.forward_features(x))


@pytest.mark.parametrize("fixture", ["acmix_local", "acmix_window"])
def test_loads_a_bare_operator_in_either_naming(fixture):
    golden = Fixture(fixture)
    if fixture == "acmix_window":
        operator, order, back = (
            ACmix(24, attention="window", num_heads=3, fc_bias=True),
            (0, 3, 1, 2),
            (0, 2, 3, 1),
        )
    else:
        operator, order, back = ACmix(32), (0, 1, 2, 3), (0, 1, 2, 3)
    operator.double().eval()
    convattn.load_official(operator, golden.state())
    out = operator(golden.images().permute(order)).permute(back)
    assert relative_error(out, golden.output()) < 1e-8


def test_loads_a_bare_block_with_a_scalar_temperature():
    golden = Fixture("glmix_block_pooled")
    assert golden.state()["slot_scale"].dim() == 0
    block = GLMixBlock(48, num_heads=3, slots=16, mlp_ratio=3.0, mlp_dwconv=True).double().eval()
    convattn.load_official(block, golden.state())
    assert block.mixer.slot_scale.shape == (1,)
    assert relative_error(block(golden.images()), golden.output()) < 1e-8


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("page.pth", b"<!DOCTYPE html>", r"page\.pth is not a file of torch\.save.*web page"),
        ("none.pth", b"", r"none\.pth is not a file of torch\.save"),
        ("old.pth", b"\x80\x02", r"old\.pth is damaged or incomplete"),
        ("bad.safetensors", b"abc", r"bad\.safetensors is damaged or is not a safetensors file"),
    ],
)
def test_files_of_another_format_are_refused(model, tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        convattn.load_official(model, tmp_path / file)


def test_half_of_a_file_is_refused(model, tmp_path):
    torch.save({"model": published()}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=r"half\.pth is damaged or incomplete .* download it again"
    ):
        convattn.load_official(model, tmp_path / "half.pth")


def test_a_weight_under_two_names_is_refused(model):
    state = published()
    with pytest.raises(ValueError, match=r"'head\.fc\.weight' occurs twice"):
        convattn.load_official(model, state | {"head.fc.weight": state["head.weight"] + 1})
    with pytest.raises(ValueError, match=r"differ in .*module"):
        convattn.load_official(model, state | {"module.norm.bias": state["norm.bias"] + 1})


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(model, dtype):
    wrong = {"norm.bias": torch.zeros(128, dtype=dtype)}
    with pytest.raises(ValueError, match=r"1 of another dtype \(norm\.bias"):
        convattn.load_official(model, published() | wrong)


def test_a_model_on_the_meta_device_is_refused():
    empty = convattn.create_model("glnet_nano", num_classes=10, device="meta")
    with pytest.raises(ValueError, match=r"on the meta device.*to_empty"):
        convattn.load_official(empty, published())
