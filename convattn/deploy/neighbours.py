"""Batch norms that follow a layer in networks of any library: found by tracing, then folded."""

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
    """Fold each batch norm whose input is always, and only its own, the output of one layer.

    The model keeps its classes and methods: tracing only tells what follows what.
    """
    shared = _names_of_shared(model)
    for layer, norm, host in list(_pairs(_skeleton(model), "")):
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
    """Yield layers, the norms after them and the module that calls both, by their names.

    A module whose ``forward`` was replaced is traced by its class, which is not what it computes;
    the modules in it are traced apart too.
    """
    if not any(isinstance(module, NORMS) for module in part.modules()):
        return
    if _looks_after_itself(part):
        return
    prefix = f"{name}." if name else ""
    graph = _traced(part)
    apart = [child for child, _ in part.named_children()]
    if graph is not None:
        for layer, norm in _adjacent(graph, part):
            yield prefix + layer, prefix + norm, name
        if not replaced_steps(part):
            called = dict.fromkeys(str(n.target) for n in graph.nodes if n.op == "call_module")
            apart = [child for child in called if attachment(part.get_submodule(child))]
    for child in apart:
        yield from _pairs(part.get_submodule(child), prefix + child)


def _adjacent(graph: fx.Graph, root: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the pairs of one graph: wherever the one is called, the other one alone follows."""
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
        if not _can_take(root.get_submodule(layer)):
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
    """Return the name of the module that gives a node, if it seems to be an adapter of a layer.

    It holds a layer that could take a norm over, and no norm. The adapter itself does not take it
    over, and `fold_norm` notes why.
    """
    if not isinstance(node, fx.Node):
        return None
    stack = list(node.meta.get("nn_module_stack", {}).values())
    name = str(node.target) if node.op == "call_module" else str(stack[-1][0]) if stack else ""
    module = root.get_submodule(name)
    norms = any(isinstance(part, NORMS) for part in module.modules())
    if module is root or _can_take(module) or norms:
        return None
    return name if any(map(_can_take, module.children())) else None


def _can_take(layer: nn.Module) -> bool:
    # A linear layer's channels are its last axis, a norm's the second: the same in a matrix only.
    return isinstance(layer, nn.Conv2d) or hasattr(type(layer), "absorb_affine")


class _Tracer(fx.Tracer):
    """Looks into all that is not known to be one step, nor kept whole."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.start = root

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, NORMS) or _looks_after_itself(m) or is_notrace_module(type(m)):
            return True
        if m is not self.start and (isinstance(m, nn.Conv2d) or attachment(m)):
            return True
        return super().is_leaf_module(m, module_qualified_name)


def _traced(part: nn.Module) -> fx.Graph | None:
    try:
        return _Tracer(part).trace(part)
    except Exception:  # tracing runs the code of any library with what is no tensor
        return None


def _looks_after_itself(module: nn.Module) -> bool:
    ours = type(module).__module__.split(".")[0] == "convattn"
    return ours or any(hasattr(type(module), name) for name in _OWN_FOLDING)


def _names_of_shared(model: nn.Module) -> set[str]:
    """Return every name of the modules that have several."""
    named = list(model.named_modules(remove_duplicate=False))
    times = Counter(id(module) for _, module in named)
    return {name for name, module in named if times[id(module)] > 1}


def _skeleton(model: nn.Module) -> nn.Module:
    """Return a copy without weights, for tracing: some code keeps what passes through it."""
    try:
        memo = {key: value.to("meta") for key, value in computed_memo(model).items()}
        memo |= {id(b): b.detach().to("meta") for b in model.buffers()}
        for weight in model.parameters():
            memo[id(weight)] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, ValueError):
        return nn.Identity()  # what cannot be copied, or has no sizes yet, is not traced
