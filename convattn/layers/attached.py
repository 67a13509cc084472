"""What is attached to a convolution beside its sizes and its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.layers import Conv2dSame
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod

_PLAIN = frozenset(vars(nn.Conv2d(1, 1, 1, device="meta")))
_TENSORS = ("weight", "bias")
_COMPILED = "_compiled_call_impl"


def obstacle(conv: nn.Conv2d) -> str | None:
    """Return why no other layer can be put in the place of a convolution unnoticed, or None.

    Others rely on the module itself: they registered hooks on it, gave it another ``forward`` or
    put a module into it. What computes the weight, such as a parametrization, is none of these.
    """
    modules = [name for name, _ in conv.named_children() if name != "parametrizations"]
    if modules:
        return f"it holds modules ({', '.join(modules)}), which would be lost: take them out first"
    methods = [name for name in _own(conv) if _is_method(conv, name)]
    if methods:
        return (
            f"its {', '.join(methods)} was replaced on the instance, which would be lost: "
            "restore it first"
        )
    hooks = hooks_of(conv)
    if hooks:
        return (
            f"it has {hooks}, which would be lost: remove them, and register them on the new layer"
        )
    return None


def hooks_of(conv: nn.Conv2d) -> str:
    """Name the hooks of a convolution by their kinds, without those that compute its weight."""
    counts = [
        (kind.strip("_").removesuffix("s").replace("_", " "), len(_foreign(hooks)))
        for kind, hooks in vars(conv).items()
        if kind.endswith("_hooks")
    ]
    named = [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts if n]
    return f"hooks ({', '.join(named)})" if named else ""


def losses(conv: nn.Conv2d) -> Iterator[str]:
    """Name what a layer in the place of a convolution does not have, beside the weights."""
    computed = dict(_computed(conv))
    yield from (f"{kind} of its {tensor}" for tensor, kind in computed.items())
    yield from (f"its {t}, no parameter" for t in _TENSORS if t in vars(conv).keys() - computed)
    if not _computes_plainly(conv):
        yield f"what {type(conv).__name__} computes in its own way"
    known = (*(f"{tensor}_" for tensor in computed),)
    own = [*conv._parameters, *conv._buffers]
    extra = [name for name in own if name not in _TENSORS and not name.startswith(known)]
    if extra:
        yield f"its {', '.join(extra)}"
    for name, parameter in conv.named_parameters():
        # torch.compile marks parameters too
        marks = [mark for mark in vars(parameter) if not mark.startswith("_dynamo")]
        if marks:
            yield f"{', '.join(marks)} of its {name}"
        after: Any = getattr(parameter, "_post_accumulate_grad_hooks", None)
        number = len(parameter._backward_hooks or ()) + len(after or ())
        if number:
            yield f"{number} gradient hook{'s' if number > 1 else ''} of its {name}"
    if vars(conv).get(_COMPILED) is not None:
        yield "its compile()"


def carry_attributes(conv: nn.Conv2d, layer: nn.Module) -> list[str]:
    """Give a layer the attributes that were set on a convolution, such as ``conv.lr_scale``.

    Returns:
        The names of those that the layer has itself, and keeps.
    """
    clashes = []
    for name, value in _own(conv).items():
        if _is_method(conv, name):
            continue
        if hasattr(layer, name) and not hasattr(nn.Module, name):
            clashes.append(name)
        else:
            vars(layer)[name] = value  # a module, too, is none of the layer's children
    return clashes


def _own(conv: nn.Conv2d) -> dict[str, Any]:
    """Return what was set on a convolution: weights that are computed, and compile(), are not."""
    known = (*_PLAIN, *_TENSORS, _COMPILED)
    return {name: value for name, value in vars(conv).items() if name not in known}


def _is_method(conv: nn.Conv2d, name: str) -> bool:
    return callable(getattr(type(conv), name, None)) and callable(vars(conv)[name])


def _foreign(hooks: Any) -> list[Any]:
    return [hook for hook in hooks.values() if not _computes_a_weight(hook)]


def _computes_a_weight(hook: Any) -> bool:
    theirs = str(getattr(hook, "__module__", "")).startswith("torch.nn.utils.")
    return theirs or isinstance(hook, BasePruningMethod)


def _computed(conv: nn.Conv2d) -> Iterator[tuple[str, str]]:
    """Yield the names of tensors that are computed at every call, and by what."""
    if is_parametrized(conv):
        for tensor, steps in conv.parametrizations.items():  # type: ignore[operator, union-attr]
            yield tensor, " and ".join(type(step).__name__.lstrip("_") for step in steps)
    for hook in conv._forward_pre_hooks.values():
        if _computes_a_weight(hook):
            pruned = getattr(hook, "_tensor_name", None)
            yield str(pruned or getattr(hook, "name", "weight")), type(hook).__name__


def _computes_plainly(conv: nn.Conv2d) -> bool:
    """Whether a class's outputs are its weight times the inputs, however it pads them."""
    kind = type(conv)
    plain = kind.forward in (nn.Conv2d.forward, Conv2dSame.forward)
    return plain and kind._conv_forward is nn.Conv2d._conv_forward
