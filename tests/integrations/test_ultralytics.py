from __future__ import annotations

import copy
import functools
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

# a development requirement, but its OpenCV needs libGL, which may be missing
ultralytics: Any = pytest.importorskip("ultralytics", exc_type=ImportError)

from ultralytics.nn import tasks  # noqa: E402
from ultralytics.nn.modules import Bottleneck  # noqa: E402

from convattn import ACmix, GLMix, XVolution  # noqa: E402
from convattn.integrations import ultralytics as ours  # noqa: E402
from tests.integrations.detectors import DEVICE, maps, small, wake  # noqa: E402

pytestmark = pytest.mark.slow

NAMES = list(ours.MODULES)
BLOCKS = [name for name in NAMES if not name.endswith("Conv")]
CONVS = [name for name in NAMES if name.endswith("Conv")]
KINDS = {"ACmix": ACmix, "XVolution": XVolution, "GLMix": GLMix}


def kind(name: str) -> type[nn.Module]:
    return KINDS[next(operator for operator in KINDS if operator in name)]


def parse_rows(rows: list[list[Any]], **config: Any) -> list[Any]:
    ours.register()
    # Ultralytics needs the table of scales even if it has one row
    config = {"nc": 2, "scales": {"n": [1.0, 1.0, 1024]}, "scale": "n", **config}
    model, _ = tasks.parse_model({**config, "backbone": rows, "head": []}, 3, verbose=False)
    return list(model)


@pytest.fixture(params=["ACmix", "XVolution", "GLMix"])
def detector(request, tmp_path) -> Any:
    path = ours.write_yaml("yolo11n.yaml", request.param, tmp_path)
    return wake(tasks.DetectionModel(str(path), verbose=False))


@pytest.mark.parametrize("name", CONVS)
def test_a_row_scales_width_and_depth_as_a_conv_does(name):
    rows = [
        [-1, 1, "Conv", [128, 3]],
        [-1, 4, name, [128, 3, 1]],
        [-1, 1, name, [64, 5, 2, None, 1, 1, False]],
    ]
    stem, repeats, strided = parse_rows(rows, scales={"n": [0.5, 0.25, 1024]})
    assert [(layer.op.in_chans, layer.op.out_chans) for layer in repeats] == [(32, 32)] * 2
    assert type(repeats[0].op) is kind(name)
    assert (strided.op.out_chans, strided.op.kernel_size, strided.op.stride) == (16, 5, 2)
    assert isinstance(strided.act, nn.Identity)
    assert isinstance(repeats[0].act, nn.SiLU)
    # the branches of X-volution end in norms
    norm = nn.Identity if "XVolution" in name else nn.BatchNorm2d
    assert isinstance(repeats[0].bn, norm)
    y = strided(repeats(stem(torch.rand(2, 3, 13, 18))))
    assert y.shape == (2, 16, 7, 9)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_scales_its_repeats_and_its_operators_have_default_options(name):
    rows = [[-1, 6, name, [256]]]
    (block,) = parse_rows(rows, scales={"n": [0.5, 0.25, 100]})
    default = kind(name)(block.c)
    operators = [m for m in block.modules() if isinstance(m, kind(name))]
    assert len(block.m) == len(operators) == 3
    assert block.cv2.conv.out_channels == 32  # min(256, 100) / 4, to the next multiple of 8
    for operator in operators:
        assert operator.kernel_size == 3
        for field in ("window_size", "num_heads", "slot_grid"):
            for module in ("", "attn", "slot_attn"):
                given = getattr(getattr(operator, module, operator), field, None)
                wanted = getattr(getattr(default, module, default), field, None)
                assert given == wanted, (module, field)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_has_the_arguments_of_its_base_class(name):
    host = ours.MODULES[name][1].__name__
    arguments = [64, True] if host == "C2f" else [64, True, 0.25]
    rows = [[-1, 2, host, list(arguments)], [-1, 2, name, list(arguments)]]
    plain, mixed = parse_rows(rows)
    assert plain.c == mixed.c
    assert type(mixed).__name__ == name
    of = [m for m in plain.modules() if isinstance(m, Bottleneck)]
    against = [m for m in mixed.modules() if isinstance(m, Bottleneck)]
    assert [m.add for m in of] == [m.add for m in against]
    assert all(isinstance(m.cv2, ours.OperatorConv) for m in against)
    direct = ours.MODULES[name][0](64, 64, 2, *arguments[1:])
    assert [p.shape for p in direct.parameters()] == [p.shape for p in mixed.parameters()]


def test_the_default_kernel_size_of_a_conv_is_three():
    (layer,) = parse_rows([[-1, 1, "ACmixConv", [32]]])
    assert layer.op.kernel_size == 3


def test_the_activation_of_the_model_is_used():
    (layer,) = parse_rows([[-1, 1, "GLMixConv", [32, 3]]], activation="torch.nn.ReLU()")
    assert isinstance(layer.act, nn.ReLU)


def test_larger_scales_use_c3k_blocks_as_in_c3k2():
    scales = {"m": [1.0, 1.0, 512]}
    plain, mixed = parse_rows(
        [[-1, 1, "C3k2", [64, False]], [-1, 1, "C3k2ACmix", [64, False]]], scales=scales, scale="m"
    )
    assert [type(m).__name__ for m in plain.m] == [type(m).__name__ for m in mixed.m] == ["C3k"]
    assert len([m for m in mixed.modules() if isinstance(m, ACmix)]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_layers_have_the_attributes_of_parsed_layers(name):
    first, layer = parse_rows([[-1, 1, "Conv", [32, 3]], [-1, 1, name, [32]]])
    assert (layer.i, layer.f, first.i) == (1, -1, 0)
    assert layer.np == sum(p.numel() for p in layer.parameters())
    assert layer.type == f"convattn.integrations.ultralytics.{name}"


def test_groups_raise_with_the_value():
    with pytest.raises(ValueError, match=r"groups must be 1, got groups=4"):
        parse_rows([[-1, 1, "Conv", [32, 3]], [-1, 1, "ACmixConv", [32, 3, 1, None, 4]]])


def test_registering_again_changes_nothing():
    ours.register()
    parse_model = tasks.parse_model
    ours.register()
    assert tasks.parse_model is parse_model


def test_names_are_registered_after_parse_model_was_replaced(monkeypatch):
    ours.register()
    parse: Any = inspect.unwrap(tasks.parse_model)

    @functools.wraps(parse)
    def theirs(*arguments: Any, **options: Any) -> Any:
        return parse(*arguments, **options)

    monkeypatch.setattr(tasks, "parse_model", theirs)
    assert type(parse_rows([[-1, 1, "ACmixConv", [32]]])[0]) is ours.ACmixConv


def test_unpickling_a_module_registers_the_names(monkeypatch):
    stored = pickle.dumps(parse_rows([[-1, 1, "GLMixConv", [32]]])[0])
    monkeypatch.setattr(tasks, "parse_model", inspect.unwrap(tasks.parse_model))
    pickle.loads(stored)
    config = {"nc": 1, "scales": {"n": [1, 1, 64]}, "scale": "n", "head": []}
    rows = [[-1, 1, "C2fGLMix", [32]]]
    (layer,), _ = tasks.parse_model({**config, "backbone": rows}, 3, verbose=False)
    assert type(layer) is ours.C2fGLMix
    # a loaded module works even if the names cannot be registered
    monkeypatch.setattr(tasks, "parse_model", lambda d, ch, verbose=True: (nn.Sequential(), []))
    pickle.loads(stored)(torch.rand(2, 3, 9, 7))


def test_parsing_does_not_change_the_configuration():
    rows = [[-1, 1, "ACmixConv", [32]]]
    config = {"nc": 1, "scales": {"n": [1, 1, 64]}, "scale": "n", "backbone": rows, "head": []}
    before = copy.deepcopy(config)
    ours.register()
    tasks.parse_model(config, 3, verbose=False)
    assert config == before


def test_an_incompatible_parse_model_raises(monkeypatch):
    monkeypatch.setattr(tasks, "parse_model", lambda d, ch, verbose=True: (nn.Sequential(), []))
    with pytest.raises(RuntimeError, match=r"ultralytics .* reads a model differently .*8\.4\.150"):
        ours.register()
    monkeypatch.setattr(tasks, "parse_model", lambda config, verbose: (nn.Sequential(), []))
    with pytest.raises(RuntimeError, match="parse_model does not begin with"):
        ours.register()


def test_without_ultralytics_the_extra_is_named():
    code = (
        "import sys; sys.modules['ultralytics'] = None; import convattn\n"
        "import convattn.integrations.ultralytics"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: convattn.integrations.ultralytics needs ultralytics" in done.stderr
    assert "pip install 'convattn[yolo]'" in done.stderr


def test_yaml_is_written_for_any_model(tmp_path):
    path = ours.write_yaml("yolov8s.yaml", "GLMix", tmp_path, layers=(3, 15))
    assert path == tmp_path / "yolov8s-glmix.yaml"
    model = ultralytics.YOLO(path).model
    assert type(model.model[3]).__name__ == "GLMixConv"
    assert type(model.model[15]).__name__ == "C2fGLMix"
    assert model.model[3].op.out_chans == 128  # 256 at scale s
    assert model.stride.tolist() == [8, 16, 32]
    coarse = ultralytics.YOLO(ours.write_yaml("yolov8n.yaml", "ACmix", tmp_path / "a" / "b")).model
    mixed = [i for i, layer in enumerate(coarse.model) if type(layer).__name__ == "C2fACmix"]
    assert mixed == [6, 8]  # in the backbone, at 1/16 and 1/32
    with pytest.raises(ValueError, match=r"layer 9 of yolov8n.yaml is SPPF; .* layers \[0, 1, 2"):
        ours.write_yaml("yolov8n.yaml", "GLMix", tmp_path, layers=(9,))
    with pytest.raises(ValueError, match=r"layer 99 of yolov8n.yaml is nothing"):
        ours.write_yaml("yolov8n.yaml", "GLMix", tmp_path, layers=(99,))
    same = ours.write_yaml("yolov8s.yaml", "glmix", tmp_path, layers=(3, 15))
    assert same == path
    assert "C2fGLMix" in same.read_text()
    with pytest.raises(ValueError, match="did you mean 'glmix'"):
        ours.write_yaml("yolov8n.yaml", "GLMx", tmp_path)
    with pytest.raises(ValueError, match=r"no layer of yolov5n\.yaml"):
        ours.write_yaml("yolov5n.yaml", "ACmix", tmp_path)


@pytest.mark.parametrize("scale", "nsm")
def test_recipe_is_found_at_every_scale(scale):
    model = ultralytics.YOLO(ours.recipe(f"yolov8{scale}-acmix")).model
    assert model.yaml["scale"] == scale
    assert model.model[0].conv.out_channels == {"n": 16, "s": 32, "m": 48}[scale]
    assert sum(isinstance(m, ACmix) for m in model.modules()) >= 5


def test_an_unknown_recipe_names_write_yaml():
    written = r"write_yaml\('yolo11n\.yaml', 'glmix'\) writes the YAML of another network"
    with pytest.raises(ValueError, match=f"unknown recipe 'yolo11n-glmix'.*{written}"):
        ours.recipe("yolo11n-glmix")


def test_detectors_fuse_to_the_same_maps(detector):
    x = torch.rand(2, 3, 96, 160)
    before = maps(detector, x)
    assert not detector.is_fused()
    after = maps(detector.fuse(verbose=False), x)
    assert detector.is_fused()
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_detectors_in_half_precision(detector, dtype, size):
    x = torch.rand(1, 3, *size)
    full = maps(detector, x)
    half = maps(detector.to(dtype), x.to(dtype))
    assert {m.dtype for m in half} == {dtype}
    for of, against in zip(half, full, strict=True):
        error = (of.float() - against).norm() / against.norm()
        assert error < (0.01 if dtype == torch.float16 else 0.08)


def test_detectors_are_copied_and_pickled(detector, tmp_path):
    x = torch.rand(1, 3, 64, 64)
    expected = maps(detector, x)
    torch.save({"model": detector}, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)["model"]
    for model in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector)), loaded):
        torch.testing.assert_close(maps(model, x), expected, rtol=0, atol=0)


# --- training of one epoch through the public interface ---


def one_epoch(yaml: Path, data: Path) -> Any:
    model = ultralytics.YOLO(yaml)
    # nbs=4: one optimizer step per batch; amp=True would download a model
    options = {"epochs": 1, "nbs": 4, "amp": False, "project": str(data.parent / "runs")}
    model.train(data=str(data), **options, **small())
    return model.trainer


@pytest.mark.filterwarnings("ignore")  # the tracer warns about sizes that become constants
def test_recipe_trains_validates_and_exports(squares, monkeypatch):
    monkeypatch.chdir(squares.parent)
    trainer = one_epoch(ours.recipe(), squares)
    assert torch.isfinite(trainer.loss.detach())
    check(trainer, squares)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("base", "operator"),
    [("yolo11n.yaml", "XVolution"), ("yolov8n.yaml", "GLMix"), ("yolo26n.yaml", "GLMix")],
)
def test_written_yaml_trains_validates_and_exports(base, operator, squares, monkeypatch):
    monkeypatch.chdir(squares.parent)
    trainer = one_epoch(ours.write_yaml(base, operator, squares.parent), squares)
    check(trainer, squares)


def check(trainer: Any, data: Path) -> None:
    """Load the checkpoint again, validate (in half precision on a GPU), predict and export."""
    for module in trainer.model.modules():
        learnt: Any = module
        if isinstance(module, ACmix):
            assert learnt.alpha.item() != 0.5
        elif isinstance(module, XVolution):
            assert learnt.attn_norm.weight.abs().min() > 0
        elif isinstance(module, GLMix):
            assert learnt.slot_scale.item() != learnt.in_chans**-0.5
    model = ultralytics.YOLO(trainer.best)
    half = {"half": True} if DEVICE != "cpu" else {}
    metrics = model.val(data=str(data), project=str(data.parent / "runs"), **small(), **half)
    assert 0 <= metrics.box.map <= 1
    images = sorted((data.parent / "images" / "val").glob("*.png"))
    assert len(model.predict(images[:3], imgsz=64, device=DEVICE, verbose=False)) == 3

    onnxruntime = pytest.importorskip("onnxruntime")
    path = ultralytics.YOLO(trainer.best).export(
        format="onnx", imgsz=(64, 96), simplify=False, device="cpu"
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.rand(1, 3, 64, 96)
    (exported, *_) = session.run(None, {"images": x.numpy()})
    fused: Any = ultralytics.YOLO(trainer.best).model.cpu().float().fuse(verbose=False).eval()
    with torch.no_grad():
        expected = fused(x)[0]
    torch.testing.assert_close(torch.from_numpy(exported), expected, rtol=1e-3, atol=1e-3)
    # the exported graph has only standard operators
    onnx = pytest.importorskip("onnx")
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert not kinds & {"AdaptiveAvgPool", "Col2Im", "Unfold"}
