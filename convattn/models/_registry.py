"""Models by name: one loop registers a family's variants with timm, two functions look them up."""

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

# What timm's builder takes besides the arguments of the model's class.
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
        model_class: Its constructor takes ``config`` and timm's keyword arguments.
        configs: Variant name to frozen config dataclass, whose fields are keyword arguments too.
        pretrained_cfgs: Variant name to timm's pretrained_cfg.
        feature_cfg: What ``features_only=True`` gives, in timm's terms; all maps without its
            ``out_indices``, and at most its number of last ones.
        feature_maps: How many maps there are, by the config.
        checkpoint_filter: Renames the entries of a weight file that timm loads.
    """
    home = sys.modules[module]
    home.default_cfgs = {  # type: ignore[attr-defined]  # timm looks here
        **getattr(home, "default_cfgs", {}),  # of another class in the same file
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
            feature_cfg=dict(feature_cfg),  # timm changes it
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
    """Add to each variant those with one path of its operator alone: ``NAME_conv``, ``NAME_attn``.

    Args:
        configs: Variant name to frozen config dataclass.
        field: The config's field that chooses the paths.
        conv: Its value for the convolution alone.
        attn: Its value for the attention alone.
    """
    every = dict(configs)
    for name, config in configs.items():
        every[f"{name}_conv"] = dataclasses.replace(config, **{field: conv})
        every[f"{name}_attn"] = dataclasses.replace(config, **{field: attn})
    return every


def is_single_path(name: str) -> bool:
    """Return whether a name is one that `with_single_paths` has added."""
    return name.endswith(("_conv", "_attn"))


def _entrypoint(
    name: str, build: Callable[[str, bool, dict[str, Any]], nn.Module]
) -> Callable[..., nn.Module]:
    def entrypoint(pretrained: bool = False, **arguments: Any) -> nn.Module:
        return build(name, pretrained, arguments)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"Build `{name}`; takes what `convattn.create_model` takes."
    return entrypoint


def _out_indices(name: str, asked: int | Sequence[int], count: int) -> tuple[int, ...]:
    """Return the maps asked for in the network's order, in which they come and are described."""
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
        name: As `list_models` prints it.
        pretrained: Whether to load weights; this package's models have none to download, so
            they raise. Give ``checkpoint_path=`` for a file, or see `convattn.load_official`.
        **timm_arguments: Passed to `timm.create_model`: ``num_classes, in_chans, global_pool,
            drop_rate, drop_path_rate, features_only, out_indices, output_stride`` and more. A
            name that the model does not take is an error. Maps come in the network's order,
            whatever that of ``out_indices``.

    Returns:
        The model, in training mode, or with ``features_only=True`` timm's feature extractor.

    Raises:
        ValueError: If no model has this name.
        RuntimeError: If ``pretrained=True`` and there are no weights.
        TypeError: If the model takes no such argument.
    """
    if ":" not in name and "/" not in name and not is_model(name.split(".", 1)[0]):
        raise ValueError(_unknown(name))
    return timm.create_model(name, pretrained=pretrained, **timm_arguments)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of this package's models that match a shell-style pattern, sorted.

    Args:
        pattern: For example ``"glnet*"`` or ``"*nano*"``.

    Returns:
        The names; empty if none matches.
    """
    return sorted(fnmatch.filter(_NAMES, pattern))


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, timm.list_models(), n=1)  # ours are among them
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
                hint = ": it takes images of any size, as they come."
            raise TypeError(
                f"{name} takes no argument {argument!r}{hint} Known: {', '.join(known)}"
            )
