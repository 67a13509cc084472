"""Put an operator in the place of convolutions of any network."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
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
from convattn.layers.attached import carry_attributes, hooks_of, losses, obstacle
from convattn.layers.conv2d import ConvBeside
from convattn.layers.conv2d_like import Conv2dLike, follow
from convattn.layers.glmix import GLMix
from convattn.layers.holders import held
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

_PART = "it is a part of"  # how the reason of what an operator consists of begins
_HOW = "call replace on the model itself, then script, trace or export the result"
_NAMES = 8  # names that a line of the report shows; the report has them all

# Libraries that later look into layers for what was replaced, and where ``adopt(model)`` prepares
# them: named, not imported, as the library is an optional one.
_ADOPTING = {"ultralytics": "convattn.integrations.ultralytics"}

for _module in (*OPERATORS.values(), ConvBeside):
    register_notrace_module(_module)  # they look at sizes or types: torch.fx takes them as one node


@dataclass(frozen=True)
class Replacement:
    """One convolution and what stands in its place, each as it prints.

    ``notes`` say what was attached to the convolution and is lost, or means something else now.
    """

    old: str
    new: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What `replace` did, by the names of the modules."""

    replaced: Mapping[str, Replacement]
    skipped: Mapping[str, str]  # what matched and was left, with the reason

    def __str__(self) -> str:
        lines = [f"replaced {len(self.replaced)}, skipped {len(self.skipped)}"]
        lines += [f"  {name}: {r.old} -> {r.new}" for name, r in self.replaced.items()]
        return "\n".join(lines + _noted(self.replaced) + _left(self.skipped))


def replace(
    model: nn.Module,
    operator: str | type[Conv2dLike] | Factory,
    *,
    where: str | Predicate,
    keep: bool = False,
    **options: Any,
) -> Report:
    """Replace convolutions of a model, in place, by an operator of the same sizes.

    Channels, stride, dilation and the size of the output stay, as do device, type, memory format,
    mode and attributes that were set on the convolution; a convolution all of whose parameters are
    frozen (``requires_grad``) makes a frozen operator, unless it is kept. A convolution with hooks,
    or with a ``forward`` of its own, is left unless it is kept. Of what computes its weight, such
    as spectral norm or pruning, the report says that it is lost. Everything is built before
    anything is changed.

    Call this on the model itself, before it is wrapped (`DistributedDataParallel`, FSDP), scripted
    or exported, and before an optimizer is made: an optimizer that was made before does not know
    the new parameters.

    Args:
        model: any network; it is changed.
        operator: "acmix", "xvolution", "glmix", in any case, or one of their classes; or a function
            that takes the `nn.Conv2d` and returns a module, and raises ValueError to leave it.
        where: names, as `model.named_modules()` gives them, in shell style (``"layer3.*.conv2"``,
            with ``*`` for dots too); or a function of name and convolution that says yes or no.
        keep: whether the trained convolution stays in the result, and the model computes at first
            what it computed before. X-volution takes it over as its convolution branch and starts
            its attention at zero (`XVolution.take_over`); beside other operators it stays as it
            is: ``y = conv(x) + gamma * operator(x)``, gamma (C,) starting at zero. What is new can
            be trained, even where the convolution is frozen.
        **options: keyword arguments of the operator; see `ACmix.from_conv2d` for the number of
            heads.

    Returns:
        What was replaced by what, and what matched but was left, with the reason.

    Raises:
        TypeError: an unknown option, or one that the convolution decides, like the stride; or a
            model that is scripted, or no `nn.Module`.
        ValueError: nothing matched (the message shows the nearest names), all that matched had to
            be left (the message shows why), or the model is itself a convolution.
    """
    build = _builder(operator, options)
    _check(model)
    if isinstance(model, _CONVOLUTIONS):
        raise ValueError(
            "the model is itself a convolution and stands in nothing that could be changed; use "
            "ACmix.from_conv2d(conv), or the like"
        )
    named = _convolutions(model)
    matched = {name: conv for name, conv in named.items() if _matches(where, name, conv)}
    if not matched:
        raise ValueError(_nothing_matched(model, where, list(named)))
    skipped = _inside_operators(model, matched) | _elsewhere_too(named, matched)
    skipped |= ({} if keep else _tied(model, matched)) | held(model, matched)
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
                    *_left(report.skipped),
                ]
            )
        )
    parents = {name: model.get_submodule(name.rpartition(".")[0]) for name in report.replaced}
    finish = [_finisher(library) for library in _libraries(model)]
    for name, parent in parents.items():
        setattr(parent, name.rpartition(".")[2], made[matched[name]][0])
    for adopt in finish:
        adopt(model)
    return report


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}: {_HOW}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"{type(model).__name__} is a script, whose code is fixed: {_HOW}")


def _libraries(model: nn.Module) -> list[str]:
    named = {type(module).__module__.partition(".")[0] for module in model.modules()}
    return [library for library in _ADOPTING if library in named]


def _finisher(library: str) -> Callable[[nn.Module], Any]:
    return importlib.import_module(_ADOPTING[library]).adopt


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
            f"operator must be a name, an operator's class or a function of the nn.Conv2d, "
            f"got {type(operator).__name__}"
        )
    if options:
        raise TypeError(
            f"{', '.join(options)} would be ignored: a function that makes the module has its "
            "own options"
        )
    return operator


def _convolutions(model: nn.Module) -> dict[str, nn.Module]:
    """Every name of every convolution: one that stands in two places has two."""
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
        f"where takes none of the {len(names)} convolutions; the first ones are "
        f"{', '.join(names[:5])}"
    )


def _no_convolution(model: nn.Module) -> str:
    """Say where the convolutions of a model went, if it had any."""
    for name, module in model.named_modules():
        other = _other_convolution(name, module)
        if other:
            return f"the model has no convolution that could be replaced: {other}"
    if isinstance(model, fx.GraphModule):
        return f"the model has no convolution as a module, it is a graph of operations; {_HOW}"
    return "the model has no convolution"


def _other_convolution(name: str, module: nn.Module) -> str | None:
    """Say why what looks like a convolution is none of torch's any more."""
    if isinstance(module, torch.jit.ScriptModule):
        return f"{name!r} is a script, whose code is fixed; {_HOW}"
    named = re.search(r"Conv(Transpose|ReLU)?\dd$", type(module).__name__)
    if not named or any(isinstance(part, _CONVOLUTIONS) for part in module.modules()):
        return None
    return (
        f"{name!r} is {type(module).__module__}.{type(module).__name__}, and only nn.Conv2d can be "
        "replaced; of a model that was quantized, call replace before"
    )


def _called(model: nn.Module, where: str, names: list[str]) -> str:
    """Say what a pattern is the name of, and what was probably meant."""
    others = {name: m for name, m in model.named_modules() if name and _matches(where, name, m)}
    ours = [m for m in others.values() if isinstance(m, Conv2dLike | ConvBeside)]
    for name, module in others.items():
        more = f" (one of {len(ours)} that it names)" if len(ours) > 1 else ""
        if isinstance(module, ConvBeside):
            return f": {name!r} already has {type(module.op).__name__} beside it{more}"
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


def _inside_operators(model: nn.Module, matched: Mapping[str, nn.Module]) -> dict[str, str]:
    """Name the convolutions that are parts of an operator: those make it what it is."""
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


def _elsewhere_too(
    named: Mapping[str, nn.Module], matched: Mapping[str, nn.Module]
) -> dict[str, str]:
    """Name the convolutions that stand in another place too, which ``where`` does not match."""
    others = {conv: name for name, conv in named.items() if name not in matched}
    return {
        name: f"it is also {others[conv]!r}, which where does not match"
        for name, conv in matched.items()
        if conv in others
    }


def _tied(model: nn.Module, matched: Mapping[str, nn.Module]) -> dict[str, str]:
    """Name the convolutions whose weight another module has too: two operators share none."""
    owners: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append((name, module))
    return {
        name: f"its weight is also that of {other!r}: make them one module, or use keep=True"
        for name, conv in matched.items()
        for parameter in conv.parameters()
        for other, module in owners[parameter]
        if module not in conv.modules()
    }


def _made(conv: nn.Module, build: Factory, keep: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Return what stands in the place of a convolution, and what there is to say of it."""
    if not isinstance(conv, nn.Conv2d):
        raise ValueError(f"only nn.Conv2d can be replaced, not {type(conv).__name__}")
    new = build(conv)
    if not isinstance(new, nn.Module):
        raise TypeError(f"operator must return a module, got {type(new).__name__}")
    new = follow(conv, new)
    if keep:
        new = _beside(conv, new)
    elif _is_frozen(conv):
        new.requires_grad_(False)
    if new is conv:
        return new, ()
    if conv in new.modules():
        carry_attributes(conv, new)
        hooks = hooks_of(conv)
        return new, ((f"its {hooks} see the convolution alone",) if hooks else ())
    reason = obstacle(conv)
    if reason is not None:
        raise ValueError(reason)
    return new, tuple(_losses(conv, new))


def _beside(conv: nn.Conv2d, new: nn.Module) -> nn.Module:
    if not isinstance(new, XVolution):
        return ConvBeside(conv, new).train(conv.training)
    new.take_over(conv)
    return new


def _is_frozen(conv: nn.Conv2d) -> bool:
    """Ask the parameters: a weight that is computed from one says nothing of it."""
    trained = [parameter.requires_grad for parameter in conv.parameters()]
    return bool(trained) and not any(trained)


def _losses(conv: nn.Conv2d, new: nn.Module) -> Iterator[str]:
    yield from (f"lost, {what}" for what in losses(conv))
    yield from (f"lost, its attribute {name}" for name in carry_attributes(conv, new))
    frozen = [name for name, p in conv.named_parameters() if not p.requires_grad]
    if frozen and not _is_frozen(conv):
        yield f"trained as a whole, though its {', '.join(frozen)} was frozen"


def _noted(replaced: Mapping[str, Replacement]) -> list[str]:
    """Lines of what there is to say of the replacements: one for each note."""
    groups: dict[str, list[str]] = {}
    for name, replacement in replaced.items():
        for note in replacement.notes:
            groups.setdefault(note, []).append(name)
    return [f"  {note}: {_names(names)}" for note, names in groups.items()]


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return f"{', '.join(names[:_NAMES])}{more}"


def _left(skipped: Mapping[str, str]) -> list[str]:
    """Lines that say what was left: one a reason, and one for all parts of operators."""
    groups: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        key = "parts of operators" if reason.startswith(_PART) else reason
        groups.setdefault(key, []).append(name)
    lines = []
    for reason, names in groups.items():
        if len(names) == 1:
            lines.append(f"  {names[0]}: left, {skipped[names[0]]}")
            continue
        lines.append(f"  left {len(names)}, {reason}: {_names(names)}")
    return lines


def _describe(module: nn.Module) -> str:
    if isinstance(module, ConvBeside):
        return f"{type(module).__name__}({_describe(module.op)})"
    return f"{type(module).__name__}({module.extra_repr()})"
