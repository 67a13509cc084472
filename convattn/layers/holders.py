"""Find wrappers and lists that would still hold a module or parameter after its replacement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

# Class names, because some libraries are optional. `synchroniser` also finds other wrappers: those
# with a submodule ``module`` and a method ``no_sync``.
_WRAPPERS = {
    *("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"),
    *("DDP", "DeepSpeedEngine"),
}
_AVERAGES = {"AveragedModel", "ModelEmaV2", "ModelEmaV3"}
_TAKE_OUT = "remove it from there, and add the new one after replace"
_DEPTH = 4  # of nested lists that are searched


def synchroniser(module: nn.Module) -> str | None:
    """Return the class name of a wrapper for several processes; None for other modules."""
    for kind in type(module).__mro__:
        wraps = "no_sync" in vars(kind) and "module" in module._modules
        if kind.__name__ in _WRAPPERS or wraps:
            return kind.__name__
    return None


def held(model: nn.Module, convolutions: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the convolutions that a list or wrapper also holds: name -> reason and fix."""
    wrappers = _wrappers(model)
    lists = _listed(model)
    reasons = {}
    for name, conv in convolutions.items():
        around = [why for host, why in wrappers.items() if _is_in(name, host)]
        found = [*around, *_kept(conv, lists)]
        if found:
            reasons[name] = found[0]
    return reasons


def _kept(conv: nn.Module, lists: Mapping[Any, str]) -> Iterator[str]:
    if conv in lists:
        yield f"it is also in {lists[conv]}: {_TAKE_OUT}"
    for name, parameter in conv.named_parameters():
        if type(parameter).__name__ == "DTensor":
            yield f"its {name} is a DTensor, sharded over processes: call replace before sharding"
        if parameter in lists:
            yield f"its {name} is also in {lists[parameter]}: {_TAKE_OUT}"


def _wrappers(model: nn.Module) -> dict[str, str]:
    """Return the wrappers in a model: name -> why no module inside can be replaced."""
    found = {}
    for name, module in model.named_modules(remove_duplicate=False):
        kind = synchroniser(module)
        if kind is not None:
            found[name] = (
                f"{kind} keeps a list of the model's parameters: call replace before the model is "
                "wrapped"
            )
        elif any(base.__name__ in _AVERAGES for base in type(module).__mro__):
            found[name] = (
                f"{type(module).__name__} averages the parameters of another model: call replace "
                "before it is made"
            )
    return found


def _is_in(name: str, host: str) -> bool:
    return not host or f"{name}.".startswith(f"{host}.")


def _listed(model: nn.Module) -> dict[nn.Module | nn.Parameter, str]:
    """Return the modules and parameters in lists, tuples, dicts and optimizers, and the attribute.

    The lists are attributes of modules of the model, such as ``model.decay = [conv.weight]``.
    """
    found: dict[nn.Module | nn.Parameter, str] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_modules"):
                place = f"{name!r} of {type(module).__name__}"
                found |= dict.fromkeys(_members(value, _DEPTH), place)
    return found


def _members(value: Any, depth: int) -> Iterator[nn.Module | nn.Parameter]:
    if isinstance(value, nn.Module | nn.Parameter):
        yield value
    elif depth and isinstance(value, Optimizer):
        yield from _members(value.param_groups, depth)
    elif depth and isinstance(value, dict | list | tuple | set):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _members(member, depth - 1)
