"""Whether a layer may be folded: one predicate for all that puts weights in the place of a call.

A layer is folded if its class computes what the arithmetic assumes, if nothing is attached to it,
and if it has one place in the model. Everything else is left as it is, and `folding` collects the
reasons. Hooks of all modules (``register_module_forward_hook``) belong to no layer: they do not
stop the folding, nor do hooks of state dicts and of parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, LayerScale2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torchvision.ops import FrozenBatchNorm2d

from convattn.layers.depthwise import WideDepthwise
from convattn.layers.linear import Linear

_CALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FOLDED = ("weight", "bias", "gamma", "alpha", "beta")  # names of the parameters that fold
_LIBRARIES = ("torch", "timm", "torchvision", "convattn")  # their classes are architecture
# Methods that change or show a module, and compute no outputs.
_MANAGE = {"reset_parameters", *(n for n in vars(nn.Module) if n[0] != "_")} - {"forward"}
# Methods that a class may override without a change of what folding methods assume.
_FREE = {"take_over", "init_weights", "reparameterize", "absorb_affine", "_load_from_state_dict"}
_FREE |= _MANAGE
_BASES = (nn.Module, object)

# What the classes compute that are folded; others may compute something else.
_KNOWN = (
    nn.Conv2d.forward,
    nn.Linear.forward,
    Linear.forward,
    WideDepthwise.forward,
    _BatchNorm.forward,
    nn.SyncBatchNorm.forward,
    FrozenBatchNorm2d.forward,
    BatchNormAct2d.forward,
    FrozenBatchNormAct2d.forward,
    LayerScale2d.forward,
    nn.Identity.forward,
    nn.GELU.forward,
    nn.Sequential.forward,
)


def why_not_folded(module: nn.Module) -> str | None:
    """Return why a layer is not folded, nor anything into it; None if it may be folded.

    Args:
        module: a convolution, a linear layer, a batch norm, a layer scale, or a module with
            ``absorb_affine(scale, shift)``.
    """
    return _unfit(module) or attachment(module) or _places(module)


def attachment(module: nn.Module) -> str | None:
    """Return what is attached to a module and would be lost if it were folded, or None."""
    changed = _changed(module)
    if changed is None and not is_bare(module):
        return f"it has {hooks_of(module, _CALL_HOOKS)}"
    return changed


def is_bare(module: nn.Module) -> bool:
    """Whether a call of a module runs the ``forward`` of its class alone, without hooks.

    It takes part in every call of ACmix, and so is faster than `attachment`.
    """
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def may_fold(*modules: nn.Module) -> bool:
    """Whether layers may be folded; the last one is what would be folded away."""
    return _note(modules, why_not_folded)


def may_read(*modules: nn.Module) -> bool:
    """Whether weights of layers may be read in place of calls; the layers stay as they are."""
    return _note(modules, lambda module: _unfit(module) or attachment(module))


def may_reach_into(module: nn.Module, kind: type[nn.Module] = nn.Module) -> bool:
    """Whether factors of the outputs of a module may go into layers inside of it.

    Args:
        module: the module.
        kind: the class that the caller knows the code of: the module must be an instance.
    """
    return _note((module,), lambda m: _stranger(m, kind) or attachment(m) or _places(m))


def may_fold_inside(
    module: nn.Module,
    goes: nn.Module | None = None,
    fold: str = "reparameterize",
    free: tuple[str, ...] = (),
) -> bool:
    """Whether a module computes what its method that folds assumes.

    Hooks on the module do not matter: what goes in and comes out stays the same.

    Args:
        module: the module, which folds layers in it.
        goes: what would be folded away; None for the module itself.
        fold: the method that folds.
        free: methods that a derived class may override: the folding assumes nothing of them.
    """
    return _note((module,), lambda m: _changed(m) or _overridden(m, fold, free), goes)


def may_fold_itself(module: nn.Module) -> bool:
    """Whether a module of another package may fold: its own code does not look for attachments."""
    return _note((module,), lambda m: _changed(m) or _attached_inside(m))


def computed_tensors(module: nn.Module) -> dict[str, str]:
    """Return the names of tensors that are computed at every call, and by what."""
    found: dict[str, str] = {}
    if is_parametrized(module):
        for tensor, steps in module.parametrizations.items():  # type: ignore[operator, union-attr]
            found[tensor] = " and ".join(type(step).__name__.lstrip("_") for step in steps)
    for hook in module._forward_pre_hooks.values():
        if _computes_a_tensor(hook):
            pruned = getattr(hook, "_tensor_name", None)
            found[str(pruned or getattr(hook, "name", "weight"))] = type(hook).__name__
    return found


def replaced_methods(module: nn.Module) -> list[str]:
    """Return the names of methods that were replaced on the instance."""
    kind = type(module)
    attributes = vars(module).items()
    return [n for n, value in attributes if callable(value) and callable(getattr(kind, n, None))]


def replaced_steps(module: nn.Module) -> list[str]:
    """Return the names of replaced methods that may change what the module computes.

    A replaced ``train`` or ``eval`` does where it keeps the module in training.
    """
    harmless = _MANAGE - {"train", "eval"} if module.training else _MANAGE
    return [name for name in replaced_methods(module) if name not in harmless]


def hooks_of(module: nn.Module, kinds: tuple[str, ...] | None = None) -> str:
    """Name the hooks of a module by their kinds, without those that compute its tensors.

    Args:
        module: the module.
        kinds: names of the attributes that hold hooks; None for all.
    """
    counts = [
        (kind.strip("_").removesuffix("s").replace("_", " "), _others(hooks))
        for kind, hooks in vars(module).items()
        if (kind.endswith("_hooks") if kinds is None else kind in kinds)
    ]
    named = [f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in counts if n]
    return f"hooks ({', '.join(named)})" if named else ""


@dataclass
class Folding:
    """What is known of a model while it is folded: what has several places, and what is left."""

    places: Counter[nn.Module]
    noted: dict[nn.Module, tuple[str, set[nn.Module]]] = field(default_factory=dict)

    def left(self, model: nn.Module) -> dict[str, str]:
        """Return the names of the layers that were left for something attached, with reasons."""
        present = set(model.modules())
        names = {module: name for name, module in model.named_modules()}
        return {
            names[module] or "the model": reason
            for module, (reason, kept) in self.noted.items()
            if module in present and kept & present
        }


_current: ContextVar[Folding | None] = ContextVar("folding", default=None)


@contextmanager
def folding(model: nn.Module) -> Iterator[Folding]:
    """Collect what is left while a model is folded, and leave what has several places in it."""
    children = (child for module in model.modules() for child in module._modules.values())
    state = Folding(Counter(m for m in children if m is not None and type(m) is not nn.Identity))
    token = _current.set(state)
    try:
        yield state
    finally:
        _current.reset(token)


def _note(
    modules: tuple[nn.Module, ...],
    why_not: Callable[[nn.Module], str | None],
    goes: nn.Module | None = None,
) -> bool:
    """Return whether no module has a reason; note the reasons unless the architecture has one."""
    reasons = {module: reason for module in modules if (reason := why_not(module))}
    state = _current.get()
    if state is not None and not any(map(_is_architecture, reasons)):
        for module, reason in reasons.items():
            kept = state.noted.setdefault(module, (reason, set()))[1]
            kept.add(modules[-1] if goes is None else goes)
    return not reasons


def _is_architecture(module: nn.Module) -> bool:
    """Whether a module of a library is as it was built: then it never was one that folds."""
    if any(map(is_lazy, module.parameters(recurse=False))):
        return True
    own = type(module).__module__.partition(".")[0] not in _LIBRARIES
    return not own and attachment(module) is None and _places(module) is None


def _unfit(module: nn.Module) -> str | None:
    """Return why the class of a module does not fold, or None."""
    kind: Any = type(module)
    if any(map(is_lazy, module.parameters(recurse=False))):
        return "it has no sizes yet"
    if hasattr(kind, "absorb_affine"):
        return _overridden(module, "absorb_affine")
    known = kind.forward in _KNOWN and kind.__call__ is nn.Module.__call__
    if isinstance(module, nn.Conv2d):
        known = known and kind._conv_forward is nn.Conv2d._conv_forward
    return None if known else _stranger(module)


def _stranger(module: nn.Module, *kinds: type[nn.Module]) -> str | None:
    """Return that a module is of no class whose code is known, or None."""
    if isinstance(module, kinds):
        return None
    return f"it is a {type(module).__name__}, which may compute something else"


def _overridden(module: nn.Module, fold: str, free: tuple[str, ...] = ()) -> str | None:
    """Return which class overrides a method that the folding method of a base class relies on.

    The classes of this package are known. Of another class every method counts that replaces one
    of the folding class, but for those that compute no outputs.
    """
    if type(module).forward in _KNOWN:
        return None
    kinds = type(module).__mro__
    index = next((i for i, kind in enumerate(kinds) if fold in vars(kind)), len(kinds))
    known = {n for kind in kinds[index:] if kind not in _BASES for n in vars(kind) if n[:2] != "__"}
    steps = (known | {"forward", "__call__"}) - _FREE - set(free)
    for kind in kinds[:index]:
        if kind.__module__.partition(".")[0] == "convattn" or kind in _BASES:
            continue
        for name, value in vars(kind).items():
            if name in steps and (callable(value) or isinstance(value, property)):
                return f"{kind.__name__} has a {name} of its own"
    return None


def _attached_inside(module: nn.Module) -> str | None:
    for part in module.modules():
        if part is not module and (reason := attachment(part)):
            return f"for a {type(part).__name__} in it: {reason}"
    return None


def _changed(module: nn.Module) -> str | None:
    """Return what computes something else than the class of a module and its parameters."""
    for tensor, step in computed_tensors(module).items():
        return f"{step} computes its {tensor}"
    replaced = replaced_steps(module)
    if replaced:
        return f"its {', '.join(replaced)} was replaced on the instance"
    for name in _FOLDED:
        made = isinstance(getattr(type(module), name, None), property)
        if made or isinstance(vars(module).get(name), Tensor):
            return f"its {name} is no parameter"
    for name, parameter in module.named_parameters(recurse=False):
        kind = type(parameter)
        derived = kind is not nn.Parameter and issubclass(kind, nn.Parameter)
        if derived or hasattr(kind, "__tensor_flatten__"):  # quantized, or split over processes
            return f"its {name} is a {kind.__name__}"
    return None


def _places(module: nn.Module) -> str | None:
    state = _current.get()
    number = 1 if state is None else state.places[module]
    return f"it has {number} places in the model" if number > 1 else None


def _others(hooks: Any) -> int:
    return sum(not _computes_a_tensor(hook) for hook in hooks.values())


def _computes_a_tensor(hook: Any) -> bool:
    theirs = str(getattr(hook, "__module__", "")).startswith("torch.nn.utils.")
    return theirs or isinstance(hook, BasePruningMethod)
