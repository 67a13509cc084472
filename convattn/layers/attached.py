"""Find what is attached to a convolution, such as hooks and attributes, before a replacement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from timm.layers import Conv2dSame
from torch import nn

from convattn.layers.foldable import computed_tensors, hooks_of, replaced_methods

_PLAIN = frozenset(vars(nn.Conv2d(1, 1, 1, device="meta")))
_TENSORS = ("weight", "bias")
_COMPILED = "_compiled_call_impl"


def obstacle(conv: nn.Conv2d) -> str | None:
    """Return why a convolution must not be replaced by another layer, or None.

    Reasons are hooks on the module, a ``forward`` that was replaced on the instance, and modules
    inside it. Code that computes the weight, such as a parametrization, is not a reason.
    """
    modules = [name for name, _ in conv.named_children() if name != "parametrizations"]
    if modules:
        return f"it holds modules ({', '.join(modules)}), which would be lost: remove them first"
    methods = replaced_methods(conv)
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


def losses(conv: nn.Conv2d) -> Iterator[str]:
    """Describe what a replacement of a convolution loses, in addition to the weights."""
    computed = computed_tensors(conv)
    yield from (f"{kind} of its {tensor}" for tensor, kind in computed.items())
    yield from (f"its {t}, not a parameter" for t in _TENSORS if t in vars(conv).keys() - computed)
    if not _computes_plainly(conv):
        yield f"the forward of {type(conv).__name__}"
    known = (*(f"{tensor}_" for tensor in computed),)
    own = [*conv._parameters, *conv._buffers]
    extra = [name for name in own if name not in _TENSORS and not name.startswith(known)]
    if extra:
        yield f"its {', '.join(extra)}"
    for name, parameter in conv.named_parameters():
        # torch.compile sets attributes of parameters
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
    """Copy the attributes that were set on a convolution, such as ``conv.lr_scale``, to a layer.

    Returns:
        The names that the layer already has; these attributes are not copied.
    """
    clashes = []
    methods = replaced_methods(conv)
    for name, value in _own(conv).items():
        if name in methods:
            continue
        if hasattr(layer, name) and not hasattr(nn.Module, name):
            clashes.append(name)
        else:
            vars(layer)[name] = value  # a module in an attribute does not become a submodule
    return clashes


def _own(conv: nn.Conv2d) -> dict[str, Any]:
    """Return the attributes that were set on a convolution, without computed weights."""
    known = (*_PLAIN, *_TENSORS, _COMPILED)
    return {name: value for name, value in vars(conv).items() if name not in known}


def _computes_plainly(conv: nn.Conv2d) -> bool:
    """Return whether ``forward`` is a plain convolution, with any padding."""
    kind = type(conv)
    plain = kind.forward in (nn.Conv2d.forward, Conv2dSame.forward)
    return plain and kind._conv_forward is nn.Conv2d._conv_forward
