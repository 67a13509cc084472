"""What is attached to a convolution beside its sizes and its weights."""

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
    """Return why no other layer can be put in the place of a convolution unnoticed, or None.

    Others rely on the module itself: they registered hooks on it, gave it another ``forward`` or
    put a module into it. What computes the weight, such as a parametrization, is none of these.
    """
    modules = [name for name, _ in conv.named_children() if name != "parametrizations"]
    if modules:
        return f"it holds modules ({', '.join(modules)}), which would be lost: take them out first"
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
    """Name what a layer in the place of a convolution does not have, beside the weights."""
    computed = computed_tensors(conv)
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
    methods = replaced_methods(conv)
    for name, value in _own(conv).items():
        if name in methods:
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


def _computes_plainly(conv: nn.Conv2d) -> bool:
    """Whether a class's outputs are its weight times the inputs, however it pads them."""
    kind = type(conv)
    plain = kind.forward in (nn.Conv2d.forward, Conv2dSame.forward)
    return plain and kind._conv_forward is nn.Conv2d._conv_forward
