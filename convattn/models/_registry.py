"""Register, build and list models by name, with the registry of timm."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import nn

from convattn.models._pretrained import check_weights_exist

_NAMES: set[str] = set()

# Arguments of timm's builder, besides those of the model's class.
_BUILDER_ARGUMENTS = (
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "pretrained_model_args",
    "cache_dir",
    "features_only",
    "out_indices",
    "feature_cls",
)


def register_family(
    module: str,
    model_class: type[nn.Module],
    configs: Mapping[str, Any],
    pretrained_cfgs: Mapping[str, Mapping[str, Any]],
    *,
    feature_cfg: Mapping[str, Any],
    feature_maps: Callable[[Any], int] = lambda config: 4,
    checkpoint_filter: Callable[[dict[str, Any], nn.Module], dict[str, Any]],
) -> None:
    """Register every variant of a family with timm, as functions of the module that defines it.

    Args:
        module: ``__name__`` of the family's file.
        model_class: the class of the models, a `Backbone`.
        configs: variant name to frozen config dataclass, whose fields are keyword arguments too.
        pretrained_cfgs: variant name to timm's pretrained_cfg.
        feature_cfg: timm's feature_cfg, for ``features_only=True``; its ``out_indices`` is the
            number of last maps that are returned by default, all if it is missing.
        feature_maps: number of maps of a config.
        checkpoint_filter: function that renames the entries of a weight file that timm loads.
    """
    home = sys.modules[module]
    home.default_cfgs = {  # type: ignore[attr-defined]  # where timm looks for them
        **getattr(home, "default_cfgs", {}),  # those of another class in the same file
        **generate_default_cfgs({name: dict(pretrained_cfgs[name]) for name in configs}),
    }
    fields = {field.name for config in configs.values() for field in dataclasses.fields(config)}
    own = set(inspect.signature(model_class).parameters) - {"config"}
    known = sorted({*fields, *own, *_BUILDER_ARGUMENTS})

    def build(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
        _check_arguments(name, arguments, known)
        check_weights_exist(name, pretrained, arguments)
        changes = {k: arguments.pop(k) for k in list(arguments) if k in fields}
        config = dataclasses.replace(configs[name], **changes)
        if arguments.get("features_only"):
            count = feature_maps(config)
            default = range(count)[-feature_cfg.get("out_indices", count) :]
            asked = arguments.get("out_indices", default)
            arguments["out_indices"] = _out_indices(name, asked, count)
        return build_model_with_cfg(
            model_class,
            name,
            pretrained,
            pretrained_filter_fn=checkpoint_filter,
            feature_cfg=dict(feature_cfg),  # a copy: timm changes it
            config=config,
            **arguments,
        )

    for name in configs:
        entrypoint = _entrypoint(name, build)
        entrypoint.__module__ = module
        setattr(home, name, register_model(entrypoint))
        _NAMES.add(name)


def with_single_paths(
    configs: Mapping[str, Any], field: str, *, conv: str, attn: str
) -> dict[str, Any]:
    """Add, for each variant, ``NAME_conv`` and ``NAME_attn``, which have one path of the operator.

    Args:
        configs: variant name to frozen config dataclass.
        field: field of the config that chooses the paths.
        conv: value of the field for the convolution alone.
        attn: value of the field for the attention alone.
    """
    every = dict(configs)
    for name, config in configs.items():
        every[f"{name}_conv"] = dataclasses.replace(config, **{field: conv})
        every[f"{name}_attn"] = dataclasses.replace(config, **{field: attn})
    return every


def is_single_path(name: str) -> bool:
    """Return whether `with_single_paths` added this name."""
    return name.endswith(("_conv", "_attn"))


def _entrypoint(
    name: str, build: Callable[[str, bool, dict[str, Any]], nn.Module]
) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **arguments: Any) -> nn.Module:
        return build(name, pretrained, arguments)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"Build `{name}`; the arguments are those of `convattn.create_model`."
    return entrypoint


def _out_indices(name: str, asked: int | Sequence[int], count: int) -> tuple[int, ...]:
    """Return the indices of the chosen maps from 0, in the order of the network."""
    named = range(-asked, 0) if isinstance(asked, int) else asked
    if not named or not all(-count <= i < count for i in named):
        raise ValueError(
            f"{name} has {count} maps, numbered from 0 to {count - 1}: out_indices must name some "
            f"of them, or be how many of the last ones, got {asked}"
        )
    return tuple(sorted({i % count for i in named}))


def create_model(name: str, pretrained: bool = False, **timm_arguments: Any) -> nn.Module:
    """Build a model by name: one of this package's, or any of timm's.

    Args:
        name: a name from `list_models`.
        pretrained: whether to load weights. This package's models have no weights to download, so
            True raises an error for them; use ``checkpoint_path=``, or `convattn.load_official`.
        **timm_arguments: arguments of `timm.create_model`: ``num_classes, in_chans, global_pool,
            drop_rate, drop_path_rate, features_only, out_indices, output_stride`` and more. Maps
            are returned in the order of the network, whatever the order of ``out_indices``.

    Returns:
        The model, in training mode, or with ``features_only=True`` timm's feature extractor.

    Raises:
        ValueError: an unknown name.
        RuntimeError: ``pretrained=True`` without weights.
        TypeError: an argument that the model does not have.
    """
    if ":" not in name and "/" not in name and not is_model(name.split(".", 1)[0]):
        raise ValueError(_unknown(name))
    return timm.create_model(name, pretrained=pretrained, **timm_arguments)


def list_models(pattern: str = "*") -> list[str]:
    """Return the sorted names of this package's models that match a shell-style pattern.

    Args:
        pattern: for example ``"glnet*"`` or ``"*nano*"``.
    """
    return sorted(fnmatch.filter(_NAMES, pattern))


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, timm.list_models(), n=1)  # also this package's models
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return (
        f"unknown model {name!r}{hint} convattn.list_models() lists this package's models, "
        "timm.list_models() the others"
    )


def _check_arguments(name: str, arguments: Mapping[str, Any], known: list[str]) -> None:
    for argument in arguments:
        if argument not in known:
            near = difflib.get_close_matches(argument, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            if argument == "img_size":
                hint = ": the model supports images of any size without it."
            raise TypeError(
                f"{name} takes no argument {argument!r}{hint} Known: {', '.join(known)}"
            )
