"""Fold batch norms into the layer before them, in networks of any library, by ``torch.fx``."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

from timm.models import get_notrace_functions, is_notrace_module
from torch import fx, nn

from convattn.deploy.copying import computed_memo
from convattn.layers.foldable import attachment, may_fold_inside, replaced_steps
from convattn.layers.folding import NORMS, fold_norm, left_of

_OWN_FOLDING = ("fuse", "forward_fuse", "switch_to_deploy", "absorb_affine")


def fold_neighbours(model: nn.Module) -> None:
    """Fold each batch norm into the layer before it, if no other module reads that layer's output.

    The model keeps its classes and methods: the traced graph only shows which module follows which.
    """
    shared = _names_of_shared(model)
    for layer, norm, host in list(_pairs(_meta_copy(model), "")):
        if layer in shared or norm in shared:
            continue
        after = model.get_submodule(norm)
        around = model.get_submodule(host)
        if replaced_steps(around) and not may_fold_inside(around, after):
            continue
        if fold_norm(model.get_submodule(layer), after):
            parent, _, name = norm.rpartition(".")
            setattr(model.get_submodule(parent), name, left_of(after))


def _pairs(part: nn.Module, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield the names of a layer, of the norm after it and of the module that calls both.

    If ``forward`` of a module was replaced on the instance, ``torch.fx`` traces the ``forward`` of
    the class, which may differ. The children of such a module are therefore also traced separately.
    """
    if not any(isinstance(module, NORMS) for module in part.modules()):
        return
    if _folds_itself(part):
        return
    prefix = f"{name}." if name else ""
    graph = _traced(part)
    separate = [child for child, _ in part.named_children()]
    if graph is not None:
        for layer, norm in _adjacent(graph, part):
            yield prefix + layer, prefix + norm, name
        if not replaced_steps(part):
            called = dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "call_module")
            separate = [child for child in called if attachment(part.get_submodule(child))]
    for child in separate:
        yield from _pairs(part.get_submodule(child), prefix + child)


def _adjacent(graph: fx.Graph, root: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield layer and norm if the norm is the only user of the layer's output at every call."""
    calls = [node for node in graph.nodes if node.op == "call_module"]
    number = Counter(str(node.target) for node in calls)
    together = Counter(
        (str(node.args[0].target), str(node.target))
        for node in calls
        if len(node.args) == 1 and not node.kwargs and _only_user(node.args[0])
    )
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for (layer, norm), count in together.items():
        if not isinstance(root.get_submodule(norm), NORMS) or {layer, norm} & read:
            continue
        if not _can_absorb(root.get_submodule(layer)):
            continue
        if number[layer] == number[norm] == count:
            yield layer, norm
    for node in calls:
        if node.args and isinstance(root.get_submodule(str(node.target)), NORMS):
            adapter = _adapter_before(node.args[0], root)
            if adapter:
                yield adapter, str(node.target)


def _only_user(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_module" and len(node.users) == 1


def _adapter_before(node: Any, root: nn.Module) -> str | None:
    """Return the name of the adapter that outputs a node, or None.

    An adapter contains a layer that can absorb a norm, and no norm. The norm stays, and `fold_norm`
    records the reason.
    """
    if not isinstance(node, fx.Node):
        return None
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name = str(node.target) if node.op == "call_module" else str(stack[-1][0]) if stack else ""
    module = root.get_submodule(name)
    norms = any(isinstance(part, NORMS) for part in module.modules())
    if module is root or _can_absorb(module) or norms:
        return None
    return name if any(map(_can_absorb, module.children())) else None


def _can_absorb(layer: nn.Module) -> bool:
    # A linear layer has its channels on the last axis, a batch norm on axis 1. Both are the same
    # axis for matrices only, so a linear layer is excluded.
    return isinstance(layer, nn.Conv2d) or hasattr(type(layer), "absorb_affine")


class _Tracer(fx.Tracer):
    """A tracer that keeps norms, convolutions and modules with hooks as one node."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.start = root

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, NORMS) or _folds_itself(m) or is_notrace_module(type(m)):
            return True
        if m is not self.start and (isinstance(m, nn.Conv2d) or attachment(m)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _traced(part: nn.Module) -> fx.Graph | None:
    try:
        return _Tracer(part).trace(part)
    except Exception:  # tracing runs code of any library with proxies, which may raise any error
        return None


def _folds_itself(module: nn.Module) -> bool:
    ours = type(module).__module__.split(".")[0] == "convattn"
    return ours or any(hasattr(type(module), name) for name in _OWN_FOLDING)


def _names_of_shared(model: nn.Module) -> set[str]:
    """Return all names of the modules that have more than one name."""
    named = list(model.named_modules(remove_duplicate=False))
    times = Counter(id(module) for _, module in named)
    return {name for name, module in named if times[id(module)] > 1}


def _meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy on the meta device for tracing: some forward methods store their tensors."""
    try:
        memo = {key: value.to("meta") for key, value in computed_memo(model).items()}
        memo |= {id(b): b.detach().to("meta") for b in model.buffers()}
        for weight in model.parameters():
            memo[id(weight)] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, ValueError):
        return nn.Identity()  # a model that cannot be copied, or is lazy, is not traced
