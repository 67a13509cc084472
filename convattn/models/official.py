"""Loads the authors' checkpoint files into this package's modules, strictly.

Each class has a table from published names to ours. The tables of a model and of the operators
inside it apply one after the other, from the outside in, so that an operator alone loads too.
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

# A published name as a regular expression, and our name for it; several names split it evenly.
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
# Keys of files that hold weights. Of GLNet-16G the averaged weights are published.
_WRAPPERS = ("model", "model_ema", "state_dict", "state_dict_ema")
_PUBLISHED_UNDER = {"glnet_16g": "model_ema"}
# The model computes these itself, or they have no effect; a published file may contain them.
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

    The file must hold exactly the weights of the model, in the same shapes but for dimensions of
    size 1. Integer buffers, norm counters and attention masks may be present or missing.

    Args:
        model: the model; its weights are replaced in place.
        source: a file (a PyTorch pickle or .safetensors), or the state dict itself.
        wrapper: key of the file that holds the weights, where there are several. By default the
            key of the authors (``model_ema`` for GLNet-16G, else ``model``), or else the first of
            ``model``, ``model_ema``, ``state_dict``, ``state_dict_ema``.

    Returns:
        A report with the file's SHA-256, which is also printed.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: a file that is not PyTorch's, is damaged, needs more than tensors to be read, or
            does not hold exactly the weights of the model; a model on the meta device.
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
    print(f"loaded {report}")  # the source of a result should not depend on log levels
    return report


def rename(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict under ``model``'s names and in its shapes."""
    renamed = dict(state)
    for prefix, module in model.named_modules():
        renamed = _apply(_table(module), f"{prefix}." if prefix else "", renamed)
    ours = model.state_dict()
    return {k: _reshaped(v, ours[k]) if k in ours else v for k, v in renamed.items()}


def checkpoint_filter(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Rename a published file's weights for timm's loader, and leave out what it ignores."""
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
                raise ValueError(f"{target!r} is there twice, under {key!r} and under another name")
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
    """Add or drop dimensions of size 1, as of a linear layer that is a 1x1 convolution here."""
    same = [n for n in value.shape if n != 1] == [n for n in like.shape if n != 1]
    return value.reshape(like.shape) if same else value


def _is_ignored(key: str, value: Tensor) -> bool:
    return key.rsplit(".", 1)[-1] in _IGNORED or not value.is_floating_point()


def _check_same(
    model: nn.Module, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], name: str
) -> None:
    missing = [k for k in ours if k not in theirs and not _is_ignored(k, ours[k])]
    left_over = [k for k in theirs if k not in ours]
    differ = [
        f"{k} {tuple(v.shape)} instead of {tuple(ours[k].shape)}"
        for k, v in theirs.items()
        if k in ours and v.shape != ours[k].shape
    ]
    kinds = [
        f"{k} {v.dtype} instead of {ours[k].dtype}"
        for k, v in theirs.items()
        if k in ours and v.is_floating_point() != ours[k].is_floating_point()
    ]
    problems = {
        "missing": missing,
        "left over": left_over,
        "of another shape": differ,
        "of another kind of number": kinds,
    }
    text = "; ".join(f"{len(v)} {what} ({listed(v)})" for what, v in problems.items() if v)
    if text:
        raise ValueError(
            f"{name} does not hold the weights of this {type(model).__name__}: {text}. Build the "
            "variant and the num_classes that the file was trained with; as a backbone or with "
            "other classes, create_model(..., pretrained=True, pretrained_cfg_overlay={'file': "
            "PATH}) takes it"
        )


def _wrappers(model: nn.Module) -> list[str]:
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture", "")
    first = _PUBLISHED_UNDER.get(architecture, _WRAPPERS[0])
    return [first, *(key for key in _WRAPPERS if key != first)]
