"""The conditions under which a layer may be folded, or its weights read instead of a call.

A layer is folded if its class computes the known formula, if nothing is attached to it, such as a
hook, and if it occurs once in the model. All other layers stay unchanged, and `folding` collects
the reasons. Three kinds of hooks do not prevent folding: global hooks
(``register_module_forward_hook``), hooks of state dicts, and hooks of parameters.
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
_FOLDED = ("weight", "bias", "gamma", "alpha", "beta")  # the names of parameters that are folded
_LIBRARIES = (
    "torch",
    "timm",
    "torchvision",
    "convattn",
)  # their classes are not attachments
# Public methods of every module, except ``forward``: they do not change its outputs.
_HARMLESS = {"reset_parameters", *(n for n in vars(nn.Module) if n[0] != "_")} - {"forward"}
# Methods that a derived class may also override without a change of its outputs.
_FREE = {"take_over", "init_weights", "reparameterize", "absorb_affine", "_load_from_state_dict"}
_FREE |= _HARMLESS

# The forward methods of the classes that are folded. Another forward may compute something else.
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
    """Return why a layer may not be folded, and no layer into it; None if it may be folded.

    Args:
        module: a convolution, a linear layer, a batch norm, a layer scale, or a module with
            ``absorb_affine(scale, shift)``.
    """
    return _unfit(module) or attachment(module) or _places(module)


def attachment(module: nn.Module) -> str | None:
    """Return what is attached to a module and would be lost by folding, or None."""
    changed = _changed(module)
    if changed is None and not is_bare(module):
        return f"it has {hooks_of(module, _CALL_HOOKS)}"
    return changed


def is_bare(module: nn.Module) -> bool:
    """Return whether a call of a module runs only the ``forward`` of its class, without hooks.

    Every call of ACmix asks this: it is faster than `attachment`.
    """
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def may_fold(*modules: nn.Module) -> bool:
    """Return whether layers may be folded; the last layer is the one that folding removes."""
    return _note(modules, why_not_folded)


def may_read(*modules: nn.Module) -> bool:
    """Return whether the weights of layers may be read instead of calling the layers."""
    return _note(modules, lambda module: _unfit(module) or attachment(module))


def may_reach_into(
    module: nn.Module, kind: type[nn.Module] = nn.Module, ability: str | None = None
) -> bool:
    """Return whether factors of a module's outputs may be folded into layers inside the module.

    Args:
        module: the module.
        kind: the class whose code the caller knows.
        ability: the attribute by which the module's class declares that this is exact, or None.
    """

    def why_not(m: nn.Module) -> str | None:
        reason = _stranger(m, kind) or attachment(m) or _places(m)
        if reason is None and ability is not None and not getattr(m, ability):
            return f"its class {type(m).__name__} does not declare {ability}"
        return reason

    return _note((module,), why_not)


def may_fold_inside(
    module: nn.Module,
    removed: nn.Module | None = None,
    fold: str = "reparameterize",
    free: tuple[str, ...] = (),
) -> bool:
    """Return whether a module computes what its folding method assumes.

    Hooks on the module are allowed: folding does not change its inputs and outputs.

    Args:
        module: the module, which folds the layers inside it.
        removed: the layer that folding removes; None for the module itself.
        fold: the name of the folding method.
        free: names of methods that a derived class may override: the folding method does not assume
            their code.
    """
    return _note((module,), lambda m: _changed(m) or _overridden(m, fold, free), removed)


def may_fold_itself(module: nn.Module) -> bool:
    """Return whether a module of another package may fold itself: its code checks no hooks."""
    return _note((module,), lambda m: _changed(m) or _attached_inside(m))


def computed_tensors(module: nn.Module) -> dict[str, str]:
    """Return the tensors that are computed at every call: name -> class that computes it."""
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
    """Return the names of replaced methods that may change the outputs of the module.

    A replaced ``train`` or ``eval`` changes them if the module is still in training mode.
    """
    harmless = _HARMLESS - {"train", "eval"} if module.training else _HARMLESS
    return [name for name in replaced_methods(module) if name not in harmless]


def hooks_of(module: nn.Module, kinds: tuple[str, ...] | None = None) -> str:
    """Count the hooks of a module by kind, except hooks that compute its tensors.

    Args:
        module: the module.
        kinds: names of the attributes that hold hooks; None for all.

    Returns:
        Text such as "hooks (2 forward hooks, 1 backward hook)"; "" if there are none.
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
    """The state while a model is folded: how often modules occur, and which were not folded."""

    places: Counter[nn.Module]  # number of occurrences in the model
    # the reason, and the layers that folding would have removed
    noted: dict[nn.Module, tuple[str, set[nn.Module]]] = field(default_factory=dict)

    def left(self, model: nn.Module) -> dict[str, str]:
        """Return the layers that were not folded because of something attached: name -> reason."""
        present = set(model.modules())
        names = {module: name for name, module in model.named_modules()}
        return {
            names[module] or "the model": reason
            for module, (reason, removed) in self.noted.items()
            if module in present and removed & present
        }


_current: ContextVar[Folding | None] = ContextVar("folding", default=None)


@contextmanager
def folding(model: nn.Module) -> Iterator[Folding]:
    """Record which layers are not folded in this context; no module that occurs twice is folded."""
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
    removed: nn.Module | None = None,
) -> bool:
    """Return whether ``why_not`` is None for all modules; else record why, for the warning.

    Nothing is recorded if one of the reasons lies in the architecture, see `_is_architecture`.
    """
    reasons = {module: reason for module in modules if (reason := why_not(module))}
    state = _current.get()
    if state is not None and not any(map(_is_architecture, reasons)):
        for module, reason in reasons.items():
            layers = state.noted.setdefault(module, (reason, set()))[1]
            layers.add(modules[-1] if removed is None else removed)
    return not reasons


def _is_architecture(module: nn.Module) -> bool:
    """Return whether a module cannot fold by its class, and not because of something attached."""
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
    """Return the reason if a module is an instance of none of the classes, else None."""
    if isinstance(module, kinds):
        return None
    return f"it is a {type(module).__name__}, which may compute something else"


def _overridden(module: nn.Module, fold: str, free: tuple[str, ...] = ()) -> str | None:
    """Return which class overrides a method whose code the folding method assumes, or None.

    The folding method assumes all methods of its class and of the bases of its class, except those
    that do not change outputs. Derived classes of this package agree with the folding methods.
    """
    if type(module).forward in _KNOWN:
        return None
    kinds = [kind for kind in type(module).__mro__ if kind not in (nn.Module, object)]
    index = next((i for i, kind in enumerate(kinds) if fold in vars(kind)), len(kinds))
    known = {name for kind in kinds[index:] for name in vars(kind) if not name.startswith("__")}
    steps = (known | {"forward", "__call__"}) - _FREE - set(free)
    for kind in kinds[:index]:
        if kind.__module__.partition(".")[0] == "convattn":
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
    """Return why a module may compute something other than its class defines, or None."""
    for tensor, step in computed_tensors(module).items():
        return f"{step} computes its {tensor}"
    replaced = replaced_steps(module)
    if replaced:
        return f"its {', '.join(replaced)} was replaced on the instance"
    for name in _FOLDED:
        computed = isinstance(getattr(type(module), name, None), property)
        if computed or isinstance(vars(module).get(name), Tensor):
            return f"its {name} is not a parameter"
    for name, parameter in module.named_parameters(recurse=False):
        kind = type(parameter)
        derived = kind is not nn.Parameter and issubclass(kind, nn.Parameter)
        if derived or hasattr(kind, "__tensor_flatten__"):  # quantized, or sharded over processes
            return f"its {name} is a {kind.__name__}"
    return None


def _places(module: nn.Module) -> str | None:
    state = _current.get()
    number = 1 if state is None else state.places[module]
    return f"it has {number} places in the model" if number > 1 else None


def _others(hooks: Any) -> int:
    return sum(not _computes_a_tensor(hook) for hook in hooks.values())


def _computes_a_tensor(hook: Any) -> bool:
    of_torch = str(getattr(hook, "__module__", "")).startswith("torch.nn.utils.")
    return of_torch or isinstance(hook, BasePruningMethod)
