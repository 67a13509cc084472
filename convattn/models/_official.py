"""Loads the authors' checkpoint files into this package's modules, strictly.

A table per class says what each published name is called here. Tables of a model and of the
operators inside it apply one after the other, from the outside in, so a bare operator loads too.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convattn.layers.acmix.acmix import ACmix
from convattn.layers.attention.block import AttentionBlock
from convattn.layers.glmix import GLMixBlock

# A published name as a regular expression, and our name for it; several names split it evenly.
Renames = Sequence[tuple[str, "str | tuple[str, ...]"]]
Table = Callable[[nn.Module], Renames]  # what the names are may depend on the variant

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
# Where files keep the weights. The authors publish GLNet-16G's average, of the others the model.
_WRAPPERS = ("model", "model_ema", "state_dict", "state_dict_ema")
_PUBLISHED_UNDER = {"glnet_16g": "model_ema"}
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
_PICKLE, _ZIP = b"\x80", b"PK"  # how files of torch.save start, the old ones and the new
# Recomputed by the model, or of no effect: published files have or lack them.
_IGNORED = ("num_batches_tracked", "relative_position_index", "attn_mask")


@dataclass(frozen=True)
class LoadReport:
    """What `load_official` did."""

    source: str  # the file, or "state dict"
    wrapper: str  # the key under which the file keeps the weights, "" for none
    sha256: str  # of the file, "" for a state dict
    entries: int  # tensors loaded
    ignored: tuple[str, ...]  # names in the file that carry no weights

    def __str__(self) -> str:
        checksum = f", sha256 {self.sha256}" if self.sha256 else ""
        where = f" under {self.wrapper!r}" if self.wrapper else ""
        return f"{self.source}: {self.entries} entries{where}{checksum}"


def add_names(module_class: type[nn.Module], table: Table) -> None:
    """Say what the published names of a family are called in a model of ``module_class``."""
    _MODELS[module_class] = table


def load_official(
    model: nn.Module, source: str | Path | Mapping[str, Any], *, wrapper: str | None = None
) -> LoadReport:
    """Load an authors' checkpoint into a model, an operator or a block, strictly.

    Every weight of the model must be in the file and every weight of the file in the model, of the
    same shape but for dimensions of size 1. Integer buffers, norm counters and attention masks may
    be there or not.

    Args:
        model: Changed in place.
        source: A file (a PyTorch pickle or .safetensors), or the state dict itself.
        wrapper: Key of the file that holds the weights, where there are several. By default the
            authors' (``model_ema`` for GLNet-16G, else ``model``), else the first of ``model``,
            ``model_ema``, ``state_dict``, ``state_dict_ema``.

    Returns:
        What was loaded, with the file's SHA-256, which is printed too.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is none of PyTorch's, is damaged, needs more than tensors to be
            read, has no weights, or they are not exactly the model's; or if the model is on the
            meta device.
    """
    if isinstance(source, Mapping):
        name, checksum, content = "state dict", "", source
    else:
        path = Path(source)
        name, checksum, content = str(path), _sha256(path), _read(path)
    key, state = _unwrap(content, name, [wrapper] if wrapper else _wrappers(model))
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
    print(f"loaded {report}")  # which file a result came from should not depend on log levels
    return report


def rename(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published state dict under ``model``'s names and in its shapes."""
    renamed = dict(state)
    for prefix, module in model.named_modules():
        renamed = _apply(_table(module), f"{prefix}." if prefix else "", renamed)
    ours = model.state_dict()
    return {k: _reshaped(v, ours[k]) if k in ours else v for k, v in renamed.items()}


def checkpoint_filter(state: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Let timm load a published file too, where its ``pretrained_cfg_overlay`` names one."""
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
    """Add or drop dimensions of size 1: a linear layer is a 1x1 convolution, a scalar is (1,)."""
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
    text = "; ".join(f"{len(v)} {what} ({_some(v)})" for what, v in problems.items() if v)
    if text:
        raise ValueError(
            f"{name} does not hold the weights of this {type(model).__name__}: {text}. Build the "
            "variant and the num_classes that the file was trained with; as a backbone or with "
            "other classes, create_model(..., pretrained=True, pretrained_cfg_overlay={'file': "
            "PATH}) takes it"
        )


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _wrappers(model: nn.Module) -> list[str]:
    architecture = getattr(model, "pretrained_cfg", {}).get("architecture", "")
    first = _PUBLISHED_UNDER.get(architecture, _WRAPPERS[0])
    return [first, *(key for key in _WRAPPERS if key != first)]


def _unwrap(content: Any, name: str, wrappers: Sequence[str]) -> tuple[str, dict[str, Tensor]]:
    keys = list(content) if isinstance(content, Mapping) else []
    # A single wrapper was asked for by name: without it the file is the wrong one.
    absent = wrappers[0] if len(wrappers) == 1 else ""
    key = next((k for k in wrappers if k in keys and content[k]), absent)
    state = content if not key else content.get(key) if keys else None
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{name} holds no weights{f' under {key!r}' if key else ''}; "
            f"it is a {type(content).__name__} with the keys {keys[:8]}"
        )
    strange = [k for k, v in state.items() if not isinstance(v, Tensor)]
    if strange:
        raise ValueError(f"{name} holds entries that are no tensors: {_some(strange)}")
    bare = {_without_prefixes(str(k)): v for k, v in state.items()}
    if len(bare) < len(state):
        raise ValueError(f"{name} holds entries that differ in {_WRAPPER_PREFIXES} alone")
    return key, bare


def _without_prefixes(key: str) -> str:
    for prefix in _WRAPPER_PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] != _PICKLE and start != _ZIP:
        raise ValueError(
            f"{path} is no file of torch.save: it starts with {start!r}. A download that fails "
            "often leaves a web page in its place"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is damaged or incomplete ({_first_line(error)}); download it again"
        ) from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} needs more than tensors to be read, and a pickle that does can run any code, "
            f"so it was refused ({_first_line(error)}). If you trust where it comes from, allow "
            "what it names with torch.serialization.add_safe_globals, or save its state dict alone"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "nsupported" in line), lines[0])


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
