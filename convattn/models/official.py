"""Load the authors' checkpoint files into this package's modules, strictly.

Each class has a table from published names to this package's names. The table of a model is applied
first, then the tables of the operators inside it, so an operator can also be loaded alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convattn.layers.acmix.acmix import ACmix
from convattn.layers.attention.block import AttentionBlock
from convattn.layers.glmix import GLMixBlock
from convattn.models._weight_files import listed, read, sha256, unwrap

# A published name as a regular expression, and our names; a tensor is split evenly over them.
Renames = Sequence[tuple[str, "str | tuple[str, ...]"]]
Table = Callable[[nn.Module], Renames]  # the names may depend on the variant

_MLP: Renames = (
    (r"mlp\.0\.(.*)", r"mlp.fc1.\1"),
    (r"mlp\.1\.(.*)", r"mlp.dwconv.\1"),
    (r"mlp\.[23]\.(.*)", r"mlp.fc2.\1"),
    (r"pos_conv\.(.*)", r"pos_embed.\1"),
)
_OPERATORS: dict[type[nn.Module], Renames] = {
    ACmix: (
        (r"rate1", "alpha"),
        (r"rate2", "beta"),
        (r"conv1\.(.*)", r"q_proj.\1"),
        (r"conv2\.(.*)", r"k_proj.\1"),
        (r"conv3\.(.*)", r"v_proj.\1"),
        (r"conv_p\.(.*)", r"attn.pos_proj.\1"),
        (r"qkv\.(.*)", (r"q_proj.\1", r"k_proj.\1", r"v_proj.\1")),
        (r"(proj\..*|relative_position_bias_table)", r"attn.\1"),
    ),
    GLMixBlock: (
        (r"slot_scale", "mixer.slot_scale"),
        (r"init_slots", "mixer.slots"),
        (r"relation_mha\.in_proj_(.*)", r"mixer.slot_attn.qkv.\1"),
        (r"relation_mha\.out_proj\.(.*)", r"mixer.slot_attn.proj.\1"),
        (r"feature_conv\.(.*)", r"mixer.local.\1"),
        *_MLP,
    ),
    AttentionBlock: (
        (r"mha_op\.in_proj_(.*)", r"attn.qkv.\1"),
        (r"mha_op\.out_proj\.(.*)", r"attn.proj.\1"),
        *_MLP,
    ),
}
_MODELS: dict[type[nn.Module], Table] = {}
# Keys that hold weights. The authors publish the averaged weights of GLNet-16G.
_WRAPPERS = ("model", "model_ema", "state_dict", "state_dict_ema")
_PUBLISHED_UNDER = {"glnet_16g": "model_ema"}
# Entries that a published file may contain but the model computes itself or does not use.
_IGNORED = ("num_batches_tracked", "relative_position_index", "attn_mask")


@dataclass(frozen=True)
class LoadReport:
    """The result of `load_official`."""

    source: str  # the file, or "state dict"
    wrapper: str  # the key of the file that holds the weights, "" for none
    sha256: str  # of the file, "" for a state dict
    entries: int  # tensors loaded
    ignored: tuple[str, ...]  # names in the file that are not weights

    def __str__(self) -> str:
        checksum = f", sha256 {self.sha256}" if self.sha256 else ""
        where = f" under {self.wrapper!r}" if self.wrapper else ""
        return f"{self.source}: {self.entries} entries{where}{checksum}"


def add_names(module_class: type[nn.Module], table: Table) -> None:
    """Register the table from the published names of a family to the names in its models."""
    _MODELS[module_class] = table


def load_official(
    model: nn.Module, source: str | Path | Mapping[str, Any], *, wrapper: str | None = None
) -> LoadReport:
    """Load an authors' checkpoint into a model, an operator or a block, strictly.

    The file must contain exactly the weights of the model, in the same shapes except for dimensions
    of size 1. Integer buffers, norm counters and attention masks may be present or missing.

    Args:
        model: the model; its weights are replaced in place.
        source: a file (a PyTorch pickle or .safetensors), or the state dict itself.
        wrapper: key that holds the weights if the file has several. By default the
            key of the authors (``model_ema`` for GLNet-16G, else ``model``), or else the first of
            ``model``, ``model_ema``, ``state_dict``, ``state_dict_ema``.

    Returns:
        A report with the file's SHA-256, which is also printed.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: the file is not a file of PyTorch or safetensors, is damaged, contains objects
            other than tensors, or does not contain exactly the weights of the model; or the model
            is on the meta device.
    """
    if isinstance(source, Mapping):
        name, checksum, content = "state dict", "", source
    else:
        path = Path(source)
        name, checksum, content = str(path), sha256(path), read(path)
    key, state = unwrap(content, name, [wrapper] if wrapper else _wrappers(model))
    ours = model.state_dict()
    if any(value.is_meta for value in ours.values()):
        raise ValueError(
            f"this {type(model).__name__} is on the meta device, where nothing can be loaded; "
            "give it memory with model.to_empty(device=...) first"
        )
    theirs = rename(model, state)
    ignored = tuple(sorted(k for k in theirs if k not in ours and _is_ignored(k, theirs[k])))
    theirs = {k: v for k, v in theirs.items() if k not in ignored}
    _check_same(model, ours, theirs, name)
    kept = {k: v for k, v in ours.items() if k not in theirs}
    model.load_state_dict({**kept, **theirs}, strict=True)
    report = LoadReport(name, key, checksum, len(theirs), ignored)
    print(f"loaded {report}")  # always printed: the source of the weights belongs to every result
    return report


def read_official(
    model: nn.Module, path: str | Path, *, wrapper: str | None = None
) -> dict[str, Tensor]:
    """Return the weights of an authors' file under the model's names, without checking them.

    Args:
        model: has the names; it may be on the meta device.
        path: a PyTorch pickle or .safetensors.
        wrapper: as for `load_official`.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: the file is no weight file, or is damaged.
    """
    content = read(Path(path))
    _, state = unwrap(content, str(path), [wrapper] if wrapper else _wrappers(model))
    return checkpoint_filter(state, model)


def rename(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict under ``model``'s names and in its shapes."""
    renamed = dict(state)
    for prefix, module in model.named_modules():
        renamed = _apply(_table(module), f"{prefix}." if prefix else "", renamed)
    ours = model.state_dict()
    return {k: _reshaped(v, ours[k]) if k in ours else v for k, v in renamed.items()}


def checkpoint_filter(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Rename a published file's weights for timm's loader, and remove ignored entries."""
    ours, theirs = model.state_dict(), rename(model, state)
    return {k: v for k, v in theirs.items() if k in ours or not _is_ignored(k, v)}


def _table(module: nn.Module) -> Renames:
    for base in type(module).__mro__:
        if base in _MODELS:
            return _MODELS[base](module)
        if base in _OPERATORS:
            return _OPERATORS[base]
    return ()


def _apply(renames: Renames, prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not renames:
        return dict(state)
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        targets: tuple[str, ...] = (key,)
        if key.startswith(prefix):
            targets = tuple(prefix + t for t in _targets(renames, key.removeprefix(prefix)))
        parts = value.chunk(len(targets)) if len(targets) > 1 else (value,)
        for target, part in zip(targets, parts, strict=True):
            if target in result:
                raise ValueError(f"{target!r} occurs twice, under {key!r} and under another name")
            result[target] = part
    return result


def _targets(renames: Renames, name: str) -> tuple[str, ...]:
    for pattern, replacement in renames:
        match = re.fullmatch(pattern, name)
        if match:
            names = (replacement,) if isinstance(replacement, str) else replacement
            return tuple(match.expand(n) for n in names)
    return (name,)


def _reshaped(value: Tensor, like: Tensor) -> Tensor:
    """Add or remove dimensions of size 1, such as for a linear layer that is a 1x1 convolution."""
    same = [n for n in value.shape if n != 1] == [n for n in like.shape if n != 1]
    return value.reshape(like.shape) if same else value


def _is_ignored(key: str, value: Tensor) -> bool:
    return key.rsplit(".", 1)[-1] in _IGNORED or not value.is_floating_point()


def _check_same(
    model: nn.Module, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], name: str
) -> None:
    missing = [k for k in ours if k not in theirs and not _is_ignored(k, ours[k])]
    unexpected = [k for k in theirs if k not in ours]
    shapes = [
        f"{k} {tuple(v.shape)} instead of {tuple(ours[k].shape)}"
        for k, v in theirs.items()
        if k in ours and v.shape != ours[k].shape
    ]
    dtypes = [
        f"{k} {v.dtype} instead of {ours[k].dtype}"
        for k, v in theirs.items()
        if k in ours and v.is_floating_point() != ours[k].is_floating_point()
    ]
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "of another dtype": dtypes,
    }
    text = "; ".join(f"{len(v)} {what} ({listed(v)})" for what, v in problems.items() if v)
    if text:
        raise ValueError(
            f"{name} does not hold the weights of this {type(model).__name__}: {text}. Build the "
            "variant with the num_classes of the file. To load the file as a backbone or with "
            "other classes, use create_model(..., pretrained=True, pretrained_cfg_overlay={'file': "
            "PATH})"
        )


def _wrappers(model: nn.Module) -> list[str]:
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture", "")
    first = _PUBLISHED_UNDER.get(architecture, _WRAPPERS[0])
    return [first, *(key for key in _WRAPPERS if key != first)]
