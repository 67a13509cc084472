"""Replace convolutions of any network by an operator of this package."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.models import register_notrace_module
from torch import fx, nn

from convattn.checks import check_choice
from convattn.layers.acmix.acmix import ACmix
from convattn.layers.attached import carry_attributes, losses, obstacle
from convattn.layers.conv2d import ConvBeside
from convattn.layers.conv2d_like import Conv2dLike, follow
from convattn.layers.foldable import hooks_of
from convattn.layers.glmix import GLMix
from convattn.layers.holders import held
from convattn.layers.leftovers import first_of, reason_lines
from convattn.layers.xvolution import XVolution

Factory = Callable[[nn.Conv2d], nn.Module]
Predicate = Callable[[str, nn.Module], bool]

OPERATORS: dict[str, type[Conv2dLike]] = {"acmix": ACmix, "xvolution": XVolution, "glmix": GLMix}

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

_PART = "it is a part of"  # the first words of the reason for every part of an operator
_HOW = "call replace on the model itself, then script, trace or export the result"

for _module in (*OPERATORS.values(), ConvBeside):
    register_notrace_module(_module)  # forward reads sizes or types: torch.fx keeps it as one node


@dataclass(frozen=True)
class Replacement:
    """The printed form of a convolution and of the module that replaced it.

    ``notes`` name what was attached to the convolution and is lost or has another meaning now.
    """

    old: str
    new: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The result of `replace`: module names with what replaced them, or why nothing did."""

    replaced: Mapping[str, Replacement]
    skipped: Mapping[str, str]  # the reason for each convolution that matched and was not replaced

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}, skipped {len(self.skipped)}"]
        lines += [f"  {name}: {r.old} -> {r.new}" for name, r in self.replaced.items()]
        return "\n".join(lines + _note_lines(self.replaced) + _skip_lines(self.skipped))


def replace(
    model: nn.Module,
    operator: str | type[Conv2dLike] | Factory,
    *,
    where: str | Predicate,
    keep: bool = False,
    **options: Any,
) -> Report:
    """Replace convolutions of a model, in place, by an operator of the same sizes.

    The operator has the convolution's channels, stride, dilation and output size, its device,
    dtype, memory format and mode, and the attributes that were set on it. If all parameters of the
    convolution are frozen (``requires_grad=False``) and ``keep`` is False, the operator is frozen
    too. With ``keep=False`` a convolution that has hooks or its own ``forward`` is not replaced,
    and the report names what is lost of a computed weight (spectral norm, pruning). All operators
    are built before the model is changed. A detector of Ultralytics is prepared for ``fuse()`` and
    ``train()``, see `convattn.integrations.ultralytics.adopt`.

    Call this on the model itself, before it is wrapped (`DistributedDataParallel`, FSDP), scripted
    or exported, and before an optimizer is made: an existing optimizer does not know the new
    parameters.

    Args:
        model: any network; it is changed.
        operator: "acmix", "xvolution" or "glmix", in upper or lower case, or one of their classes;
            or a function that gets the `nn.Conv2d` and returns a module, and raises ValueError for
            a convolution that must stay.
        where: a shell-style pattern for the names of `model.named_modules()`
            (``"layer3.*.conv2"``; ``*`` matches dots too), or a function of name and convolution
            that returns whether the convolution matches.
        keep: whether the trained convolution stays in the result, so that the model first computes
            what it computed before. X-volution takes the convolution as its convolution branch and
            starts its attention at zero (`XVolution.take_over`); the other operators are added to
            the convolution: ``y = conv(x) + gamma * operator(x)``, gamma (C,) starting at zero.
            New parameters are trained even if the convolution is frozen.
        **options: keyword arguments of the operator; see `ACmix.from_conv2d` for the number of
            heads.

    Returns:
        A report: what replaced each convolution, and why the other matching ones were skipped.

    Raises:
        TypeError: an option is unknown or is decided by the convolution, such as the stride; or
            the model is scripted or is not an `nn.Module`.
        ValueError: nothing matches (the message shows the nearest names), no match can be replaced
            (the message shows the reasons), or the model is itself a convolution.
    """
    build = _builder(operator, options)
    _check(model)
    if isinstance(model, _CONVOLUTIONS):
        raise ValueError(
            "the model is itself a convolution and has no parent module; use "
            "ACmix.from_conv2d(conv), or from_conv2d of another operator"
        )
    named = _convolutions(model)
    matched = {name: conv for name, conv in named.items() if _matches(where, name, conv)}
    if not matched:
        raise ValueError(_nothing_matched(model, where, list(named)))
    skipped = _parts_of_operators(model, matched) | _shared_modules(named, matched)
    skipped |= ({} if keep else _shared_weights(model, matched)) | held(model, matched)
    made: dict[nn.Module, tuple[nn.Module, tuple[str, ...]]] = {}
    for name, conv in matched.items():
        if name in skipped or conv in made:
            continue
        try:
            made[conv] = _made(conv, build, keep)
        except ValueError as error:
            skipped[name] = str(error)
    report = Report(
        {
            name: Replacement(_describe(conv), _describe(made[conv][0]), made[conv][1])
            for name, conv in matched.items()
            if name not in skipped
        },
        {name: skipped[name] for name in matched if name in skipped},
    )
    if not report.replaced:
        raise ValueError(
            "\n".join(
                [
                    f"no convolution that where={where!r} matches can be replaced:",
                    *_skip_lines(report.skipped),
                ]
            )
        )
    parents = {name: model.get_submodule(name.rpartition(".")[0]) for name in report.replaced}
    adopt = _adoption(model)
    for name, parent in parents.items():
        setattr(parent, name.rpartition(".")[2], made[matched[name]][0])
    if adopt is not None:
        adopt(model)
    return report


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}: {_HOW}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"{type(model).__name__} is a TorchScript module, which cannot be changed: {_HOW}"
        )


def _adoption(model: nn.Module) -> Callable[[nn.Module], object] | None:
    """Return the function that prepares a changed detector of Ultralytics; None for other models.

    Ultralytics is optional and takes seconds to import, so it is imported for its own models only.
    """
    if not any(type(m).__module__.partition(".")[0] == "ultralytics" for m in model.modules()):
        return None
    from convattn.integrations.ultralytics import adopt

    return adopt


def _builder(named: str | type[Conv2dLike] | Factory, options: dict[str, Any]) -> Factory:
    operator: Any = named
    if isinstance(named, str):
        plain = named.lower().replace("-", "")
        check_choice("operator", plain, OPERATORS)
        operator = OPERATORS[plain]
    if isinstance(operator, type) and issubclass(operator, Conv2dLike):
        operator.check_options(options)
        return partial(operator.from_conv2d, **options)
    if not callable(operator) or isinstance(operator, nn.Module):
        raise TypeError(
            f"operator must be a name, the class of an operator or a function of the nn.Conv2d, "
            f"got {type(operator).__name__}"
        )
    if options:
        raise TypeError(
            f"{', '.join(options)} would be ignored: bind options to the function that makes the "
            "module, for example with functools.partial"
        )
    return operator


def _convolutions(model: nn.Module) -> dict[str, nn.Module]:
    """Return all convolutions by name; a convolution that two modules hold has two names."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: m for name, m in modules if isinstance(m, _CONVOLUTIONS)}


def _matches(where: str | Predicate, name: str, conv: nn.Module) -> bool:
    if isinstance(where, str):
        return fnmatch.fnmatchcase(name, where)
    if not callable(where):
        raise TypeError(f"where must be a pattern or a function of name and module, got {where!r}")
    return where(name, conv)


def _nothing_matched(model: nn.Module, where: str | Predicate, names: list[str]) -> str:
    if not names:
        return _no_convolution(model)
    if isinstance(where, str):
        return f"no convolution is called {where!r}{_called(model, where, names)}"
    return (
        f"where matches none of the {len(names)} convolutions; the first ones are "
        f"{', '.join(names[:5])}"
    )


def _no_convolution(model: nn.Module) -> str:
    """Return the message for a model without convolutions, with the likely cause."""
    for name, module in model.named_modules():
        other = _other_convolution(name, module)
        if other:
            return f"the model has no convolution that could be replaced: {other}"
    if isinstance(model, fx.GraphModule):
        return f"the model has no convolution module, it is a graph of operations; {_HOW}"
    return "the model has no convolution"


def _other_convolution(name: str, module: nn.Module) -> str | None:
    """Return why a module that is called a convolution cannot be replaced, or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return f"{name!r} is a TorchScript module, which cannot be changed; {_HOW}"
    named = re.search(r"Conv(Transpose|ReLU)?\dd$", type(module).__name__)
    if not named or any(isinstance(part, _CONVOLUTIONS) for part in module.modules()):
        return None
    return (
        f"{name!r} is {type(module).__module__}.{type(module).__name__}, and only nn.Conv2d can be "
        "replaced; if the model was quantized, call replace before quantization"
    )


def _called(model: nn.Module, where: str, names: list[str]) -> str:
    """Return the rest of the message: what the pattern matches, or the nearest names."""
    others = {name: m for name, m in model.named_modules() if name and _matches(where, name, m)}
    replaced = [m for m in others.values() if isinstance(m, Conv2dLike | ConvBeside)]
    for name, module in others.items():
        more = f" (one of {len(replaced)} that it matches)" if len(replaced) > 1 else ""
        if isinstance(module, ConvBeside):
            return f": {type(module.op).__name__} is already added to {name!r}{more}"
        if isinstance(module, Conv2dLike):
            return f": {name!r} is already replaced by {type(module).__name__}{more}"
    near = ", ".join(difflib.get_close_matches(where, names, n=5, cutoff=0.0))
    for name, module in others.items():
        other = _other_convolution(name, module)
        if other:
            return f", but {other}"
        inside = fnmatch.filter(names, f"{where}.*")
        hint = f"; for its {len(inside)} convolutions use '{where}.*'" if inside else ""
        return f", but {type(module).__name__} {name!r}{hint}; the nearest names are {near}"
    return f"; the nearest names are {near}"


def _parts_of_operators(model: nn.Module, matched: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the convolutions that are parts of an operator: name -> reason to skip it."""
    hosts = {
        f"{name}.": type(module).__name__
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, Conv2dLike | ConvBeside)
    }
    return {
        name: f"{_PART} {kind} {host.rstrip('.')!r}"
        for name in matched
        for host, kind in hosts.items()
        if name.startswith(host)
    }


def _shared_modules(
    named: Mapping[str, nn.Module], matched: Mapping[str, nn.Module]
) -> dict[str, str]:
    """Return the convolutions that have a second name, not matched by ``where``, with reasons."""
    others = {conv: name for name, conv in named.items() if name not in matched}
    return {
        name: f"it is also {others[conv]!r}, which `where` does not match"
        for name, conv in matched.items()
        if conv in others
    }


def _shared_weights(model: nn.Module, matched: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the convolutions that share a parameter with another module, with reasons."""
    owners: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append((name, module))
    return {
        name: f"{other!r} has the same weight: make them one module, or use keep=True"
        for name, conv in matched.items()
        for parameter in conv.parameters()
        for other, module in owners[parameter]
        if module not in conv.modules()
    }


def _made(conv: nn.Module, build: Factory, keep: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the module that replaces a convolution, and the notes for the report."""
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"only nn.Conv2d can be replaced, not {type(conv).__name__}")
    new = build(conv)
    if not isinstance(new, nn.Module):
        raise TypeError(f"operator must return a module, got {type(new).__name__}")
    new = follow(conv, new)
    if keep:
        new = _kept(conv, new)
    elif _is_frozen(conv):
        new.requires_grad_(False)
    if new is conv:
        return new, ()
    if conv in new.modules():
        carry_attributes(conv, new)
        hooks = hooks_of(conv)
        return new, ((f"its {hooks} get the outputs of the convolution alone",) if hooks else ())
    reason = obstacle(conv)
    if reason is not None:
        raise ValueError(reason)
    return new, tuple(_notes(conv, new))


def _kept(conv: nn.Conv2d, new: nn.Module) -> nn.Module:
    if not isinstance(new, XVolution):
        return ConvBeside(conv, new).train(conv.training)
    new.take_over(conv)
    return new


def _is_frozen(conv: nn.Conv2d) -> bool:
    """Return whether all parameters are frozen; a computed weight is not a parameter."""
    trained = [parameter.requires_grad for parameter in conv.parameters()]
    return bool(trained) and not any(trained)


def _notes(conv: nn.Conv2d, new: nn.Module) -> Iterator[str]:
    yield from (f"lost, {what}" for what in losses(conv))
    yield from (f"lost, its attribute {name}" for name in carry_attributes(conv, new))
    frozen = [name for name, p in conv.named_parameters() if not p.requires_grad]
    if frozen and not _is_frozen(conv):
        yield f"all its parameters are trained, although its {', '.join(frozen)} was frozen"


def _note_lines(replaced: Mapping[str, Replacement]) -> list[str]:
    """Return one line per note, with the names of the replaced convolutions that have it."""
    groups: dict[str, list[str]] = {}
    for name, replacement in replaced.items():
        for note in replacement.notes:
            groups.setdefault(note, []).append(name)
    return [f"  {note}: {first_of(names)}" for note, names in groups.items()]


def _skip_lines(skipped: Mapping[str, str]) -> list[str]:
    return reason_lines("skipped", skipped, _PART)


def _describe(module: nn.Module) -> str:
    if isinstance(module, ConvBeside):
        return f"{type(module).__name__}({_describe(module.op)})"
    return f"{type(module).__name__}({module.extra_repr()})"
