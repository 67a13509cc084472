"""ACmix, X-volution and GLMix as modules that the YAML of a YOLO model can name."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from convattn.checks import check_choice
from convattn.layers.acmix.acmix import ACmix
from convattn.layers.glmix import GLMix
from convattn.layers.xvolution import XVolution

try:
    import ultralytics
    from ultralytics.nn import tasks
    from ultralytics.nn.modules import Bottleneck, C2f, C3k2, Conv
    from ultralytics.utils import LOGGER
except ImportError as error:
    raise ImportError(
        f"convattn.integrations.ultralytics needs ultralytics ({error}); "
        "install it with: pip install 'convattn[yolo]'"
    ) from error

from convattn.integrations import _processes
from convattn.integrations._changed_detectors import adopt as adopt
from convattn.integrations._changed_detectors import trainer as trainer

SUPPORTED = "8.4.150 to 8.4.190"  # the tested versions of Ultralytics

_NOTE = """\
# In Python, import convattn.integrations.ultralytics before the network is built.
# In a shell, run python -m convattn.integrations.yolo instead of yolo.
"""
_MARK = "reads_convattn"  # an attribute of our parse_model, which functools.wraps passes on


class _Named(nn.Module):
    """Base of the modules in `MODULES`: unpickling one registers the names."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # a loaded module works even if no YAML can be read
            register()
        super().__setstate__(state)


class OperatorConv(_Named):
    """Ultralytics' `Conv` with an operator instead of the convolution.

    ``y = act(BN(operator(x)))``; without BN for X-volution, whose branches end in batch norms.

    Args:
        c1: input channels.
        c2: output channels.
        k: kernel size of the operator's convolution; it must be odd.
        s: stride.
        p: padding; None, or the value that keeps H and W at stride 1.
        g: groups; only 1 is possible.
        d: dilation.
        act: True for the default activation of the model, False for none, or a module.

    Shape:
        (B, c1, H, W) to (B, c2, ceil(H / s), ceil(W / s)).

    Raises:
        ValueError: the operator does not support a size; the message names those it supports.
    """

    operator: type[ACmix | XVolution | GLMix]

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int = 3,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        d: int = 1,
        act: bool | nn.Module = True,
    ) -> None:
        super().__init__()
        layer = self.in_place_of(Conv(c1, c2, k, s, p, g, d, act))
        self.op, self.bn, self.act = layer.op, layer.bn, layer.act

    @classmethod
    def in_place_of(cls, conv: Any) -> Any:
        """Build a layer with the sizes, norm and activation of an Ultralytics `Conv`."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.op = cls.operator.from_conv2d(conv.conv)
        layer.bn = nn.Identity() if cls.operator is XVolution else conv.bn
        layer.act = conv.act
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c1, H, W) to (B, c2, ceil(H / s), ceil(W / s))."""
        return self.act(self.bn(self.op(x)))


class ACmixConv(OperatorConv):
    """Ultralytics' `Conv` with ACmix: ``(c1, c2, k=3, s=1, p=None, g=1, d=1, act=True)``."""

    operator = ACmix


class XVolutionConv(OperatorConv):
    """Ultralytics' `Conv` with X-volution: ``(c1, c2, k=3, s=1, p=None, g=1, d=1, act=True)``."""

    operator = XVolution


class GLMixConv(OperatorConv):
    """Ultralytics' `Conv` with GLMix: ``(c1, c2, k=3, s=1, p=None, g=1, d=1, act=True)``."""

    operator = GLMix


class _Mixed(_Named):
    """Mixin for a block: an operator replaces the second convolution of each bottleneck.

    The constructor has the arguments of the block in the installed Ultralytics.
    """

    conv: type[OperatorConv]
    m: nn.ModuleList

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mix()

    def mix(self) -> None:
        """Replace the second convolution of every bottleneck by the operator."""
        for module in self.m.modules():
            if isinstance(module, Bottleneck):
                module.cv2 = self.conv.in_place_of(module.cv2)


class C2fACmix(_Mixed, C2f):
    """`C2f` with ACmix in its bottlenecks: ``(c1, c2, n=1, shortcut=False, g=1, e=0.5)``."""

    conv = ACmixConv


class C2fXVolution(_Mixed, C2f):
    """`C2f` with X-volution in its bottlenecks: ``(c1, c2, n=1, shortcut=False, g=1, e=0.5)``."""

    conv = XVolutionConv


class C2fGLMix(_Mixed, C2f):
    """`C2f` with GLMix in its bottlenecks: ``(c1, c2, n=1, shortcut=False, g=1, e=0.5)``."""

    conv = GLMixConv


class C3k2ACmix(_Mixed, C3k2):
    """`C3k2` with ACmix in its bottlenecks: ``(c1, c2, n=1, c3k=False, e=0.5, ...)``."""

    conv = ACmixConv


class C3k2XVolution(_Mixed, C3k2):
    """`C3k2` with X-volution in its bottlenecks: ``(c1, c2, n=1, c3k=False, e=0.5, ...)``."""

    conv = XVolutionConv


class C3k2GLMix(_Mixed, C3k2):
    """`C3k2` with GLMix in its bottlenecks: ``(c1, c2, n=1, c3k=False, e=0.5, ...)``."""

    conv = GLMixConv


# Each name with its module and the module of Ultralytics as which parse_model reads the row.
MODULES: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    **{c.__name__: (c, Conv) for c in (ACmixConv, XVolutionConv, GLMixConv)},
    **{c.__name__: (c, C2f) for c in (C2fACmix, C2fXVolution, C2fGLMix)},
    **{c.__name__: (c, C3k2) for c in (C3k2ACmix, C3k2XVolution, C3k2GLMix)},
}
OPERATORS = ("ACmix", "XVolution", "GLMix")


def register() -> None:
    """Register the names of `MODULES` for the YAML of YOLO models.

    Importing this file calls this function and ignores its RuntimeError. The names are known in
    this process and in the processes that ``train(device=[0, 1])`` starts. Without registration
    such a YAML raises ``KeyError: 'C3k2GLMix'``.

    ``parse_model`` of Ultralytics reads a row with one of these names as the module that ours is
    derived from (`Conv`, `C2f` or `C3k2`), so Ultralytics scales the channels and counts the
    repeats, and all arguments have its meaning. Then the operator replaces the convolutions. The
    files of Ultralytics are not changed. A second call changes nothing.

    Raises:
        RuntimeError: the installed Ultralytics reads a model differently.
    """
    if hasattr(tasks.parse_model, _MARK):
        return
    parse = tasks.parse_model
    wrapped = _with_operators(parse)
    try:
        with torch.random.fork_rng(devices=[]):  # the import must not change the random state
            _probe(wrapped)
        _processes.import_in_processes(_register_by_import)
    except Exception as error:
        raise RuntimeError(
            f"ultralytics {ultralytics.__version__} reads a model differently from the supported "
            f"versions ({SUPPORTED}): {type(error).__name__}: {error}"
        ) from error
    tasks.parse_model = wrapped
    ultralytics.nn.parse_model = wrapped


def _register_by_import(_: Any) -> None:
    """Do nothing; a process that unpickles this callback imports this file, which registers."""


def recipe(name: str = "yolov8n-acmix") -> Path:
    """Return the path of a YAML of this package for ``ultralytics.YOLO``, and register the names.

    Args:
        name: "yolov8n-acmix", "yolov8s-acmix" or "yolov8m-acmix"; n, s and m are scales.

    Raises:
        ValueError: the name is another one; `write_yaml` writes the YAML of other networks.
    """
    try:
        check_choice("recipe", name, [f"yolov8{scale}-acmix" for scale in "nsm"])
    except ValueError as error:
        base, _, operator = name.partition("-")
        written = f"write_yaml({base + '.yaml'!r}, {operator or 'acmix'!r})"
        raise ValueError(f"{error}; {written} writes the YAML of another network") from None
    register()
    # Ultralytics takes the scale from the name and opens the file without the letter.
    return Path(__file__).parent / f"{name}.yaml"


def write_yaml(
    base: str, operator: str, folder: str | Path = ".", *, layers: Iterable[int] | None = None
) -> Path:
    """Write the YAML of a YOLO model that contains an operator, and register the names.

    Args:
        base: a YAML of Ultralytics with the letter of a scale, such as "yolo11n.yaml".
        operator: "ACmix", "XVolution" or "GLMix", in upper or lower case.
        folder: the folder of the file, created if necessary; the file is called after the base and
            the operator.
        layers: the rows to change, counted from 0; None for each `C2f` and `C3k2` of the backbone
            at stride 16 or more.

    Returns:
        The path of the file, for ``ultralytics.YOLO``.

    Raises:
        ValueError: the operator is unknown, a row is neither `Conv`, `C2f` nor `C3k2`, or there is
            no row to change.
    """
    plain = operator.lower().replace("-", "")
    known = {name.lower(): name for name in OPERATORS}
    check_choice("operator", plain, known)
    operator = known[plain]
    register()
    model = tasks.yaml_model_load(base)
    rows = model["backbone"] + model["head"]
    names = {host.__name__: name for name, (ours, host) in MODULES.items() if operator in name}
    chosen = _coarse_blocks(model["backbone"]) if layers is None else list(layers)
    if not chosen:
        raise ValueError(f"no layer of {base} is chosen: name the layers that get {operator}")
    for layer in chosen:
        if not 0 <= layer < len(rows) or rows[layer][2] not in names:
            found = rows[layer][2] if 0 <= layer < len(rows) else "nothing"
            possible = [i for i, row in enumerate(rows) if row[2] in names]
            raise ValueError(
                f"layer {layer} of {base} is {found}; {operator} can replace {', '.join(names)}: "
                f"layers {possible}"
            )
        rows[layer][2] = names[rows[layer][2]]
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / f"{Path(base).stem}-{operator.lower()}.yaml"
    content = {key: value for key, value in model.items() if key not in ("scale", "yaml_file")}
    path.write_text(_NOTE + yaml.safe_dump(content, sort_keys=False, default_flow_style=None))
    return path.resolve()


def _coarse_blocks(backbone: list[list[Any]]) -> list[int]:
    stride, blocks = 1, []
    for i, (_, _, name, arguments) in enumerate(backbone):
        if name == "Conv" and len(arguments) > 2:
            stride *= arguments[2]
        if name in ("C2f", "C3k2") and stride >= 16:
            blocks.append(i)
    return blocks


def _with_operators(parse: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(parse)
    def parse_model(d: dict[str, Any], ch: Any, verbose: bool = True) -> Any:
        replaced: dict[int, type[nn.Module]] = {}
        rows = []
        for i, (source, repeats, name, arguments) in enumerate(d["backbone"] + d["head"]):
            if name in MODULES:
                replaced[i], host = MODULES[name]
                name = host.__name__
                if host is Conv and len(arguments) == 1:
                    arguments = [*arguments, 3]  # the kernel size; the default of Conv is 1
            rows.append([source, repeats, name, arguments])
        split = len(d["backbone"])
        model, save = parse({**d, "backbone": rows[:split], "head": rows[split:]}, ch, verbose)
        for i, module in replaced.items():
            model[i] = _exchange(model[i], module)
            if verbose:
                LOGGER.info(f"layer {i} is {module.__name__}: {model[i].np:,} parameters")
        return model, save

    setattr(parse_model, _MARK, True)
    return parse_model


def _exchange(layer: nn.Module, module: type[nn.Module]) -> nn.Module:
    """Return the layer of this package for a parsed layer or a sequence of repeats."""
    if isinstance(layer, nn.Sequential):
        mixed: Any = nn.Sequential(*(_exchange(repeat, module) for repeat in layer))
    elif issubclass(module, OperatorConv):
        mixed = module.in_place_of(layer)
    else:
        mixed = layer
        mixed.__class__ = module
        mixed.mix()
    if hasattr(layer, "i"):  # a layer of the model; a repeat inside a sequence has no index
        mixed.i, mixed.f = layer.i, layer.f
        mixed.np = sum(parameter.numel() for parameter in mixed.parameters())
        mixed.type = f"{module.__module__}.{module.__name__}"
    return mixed


def _probe(parse_model: Callable[..., Any]) -> None:
    """Parse one row of each name, and raise if the result is not the named module."""
    expected = ["d", "ch", "verbose"]
    if list(inspect.signature(parse_model).parameters)[:3] != expected:
        raise TypeError(f"parse_model does not begin with {expected}")
    rows = [
        [-1, 4, name, [128, 3, 1] if host is Conv else [128]] for name, (_, host) in MODULES.items()
    ]
    scales = {"n": [0.5, 0.25, 1024]}
    probe = {"nc": 1, "scales": scales, "scale": "n", "backbone": rows, "head": []}
    model, _ = parse_model(probe, 3, False)
    for (name, (module, host)), layer in zip(MODULES.items(), model, strict=True):
        repeats = list(layer) if host is Conv else list(layer.m)
        widths = {repeat.op.out_chans if host is Conv else layer.c * 2 for repeat in repeats}
        first = repeats[0] if host is Conv else layer
        if type(first) is not module or len(repeats) != 2 or widths != {32}:
            raise TypeError(f"{name} became {type(first).__name__}, {len(repeats)} x {widths}")


with contextlib.suppress(RuntimeError):  # the rest of this file works; `register()` raises it
    register()
