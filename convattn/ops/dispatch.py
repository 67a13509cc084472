"""Choose the path that computes a call of an operator. No other module chooses a path.

An operator has a reference path, which computes the formula, and faster paths. A path *refuses* a
call that it cannot compute, and returns the reason. A path *prefers* a call for which it was
measured to be the fastest. ``backend="auto"`` takes the first path, in the operator's order, that
prefers the call and does not refuse it. A path that ``backend`` names computes the call, or a
`ValueError` contains the reason of the refusal.

`explain` returns the path that a call would take, `record_paths` lists the paths that calls took,
and ``CONVATTN_LOG=paths`` logs them.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from types import NoneType
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel

from convattn.checks import check_choice
from convattn.ops.registration import requires_gradient

_log = logging.getLogger("convattn.paths")

# Before PyTorch 2.14, `torch.compiler.is_exporting()` is also True while `torch.compile` traces,
# and traced code cannot read a context variable.
_OLD_COMPILER = torch.__version__ < "2.14"


class Call:
    """The arguments of one call of an operator: its tensors and its options.

    Derive a dataclass from this class. The fields of type ``Tensor`` or ``Tensor | None`` are the
    tensors; the first tensor determines the device and the dtype. The other fields are the options.
    A choice that is made once, when weights are folded, is a call without tensors.

    Sizes may be symbols while a model is compiled. A preference that compares a symbolic size
    causes one graph for each outcome of the comparison. A preference therefore compares sizes with
    few constants, and never compares two sizes with each other.
    """

    _tensors: ClassVar[tuple[str, ...]] = ()
    _options: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Sort the fields of the dataclass into tensors and options."""
        kinds = inspect.get_annotations(cls)
        if kinds:  # a subclass without own fields has the fields of its base class
            tensors = ("Tensor", "Tensor | None")
            cls._tensors = tuple(name for name, kind in kinds.items() if kind in tensors)
            cls._options = tuple(name for name in kinds if name not in cls._tensors)

    @property
    def tensors(self) -> tuple[Any, ...]:
        """The tensors in the order of the fields; None for each tensor that was not given."""
        return tuple([getattr(self, name) for name in self._tensors])

    @property
    def options(self) -> dict[str, Any]:
        """The fields that are not tensors, by name."""
        return {name: getattr(self, name) for name in self._options}

    @property
    def device(self) -> str:
        """The device type of the first tensor, such as "cpu", "cuda" or "meta"."""
        x: Tensor = getattr(self, self._tensors[0])
        return "cpu" if x.is_cpu else x.device.type  # is_cpu is 5x as fast as device

    @property
    def on_cpu(self) -> bool:
        """Whether all tensors are on the CPU."""
        for t in self.tensors:  # noqa: SIM110  # a loop takes half the time of `all`
            if t is not None and not t.is_cpu:
                return False
        return True

    @property
    def devices(self) -> str:
        """The devices of the tensors, as text for a message."""
        return " and ".join(sorted({str(t.device) for t in self.tensors if t is not None}))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first tensor and of the result."""
        x: Tensor = getattr(self, self._tensors[0])
        return x.dtype

    @property
    def grad(self) -> bool:
        """Whether gradients are enabled and a tensor requires a gradient."""
        return requires_gradient(*self.tensors)

    @property
    def exporting(self) -> bool:
        """Whether the call is traced for export to another runtime; see `exporting`."""
        return exporting()

    @property
    def exported(self) -> bool:
        """Whether ``torch.export`` or ``torch.onnx.export`` traces the call; not ``torch.jit``."""
        return torch.onnx.is_in_onnx_export() or is_torch_export()

    @property
    def compiling(self) -> bool:
        """Whether ``torch.compile`` or an export traces the call, so that sizes may be symbols."""
        return torch.compiler.is_compiling() or exporting()

    @property
    def transformed(self) -> bool:
        """Whether ``torch.func`` or forward-mode differentiation transforms the call."""
        return transformed()

    @property
    def autocast(self) -> bool:
        """Whether autocast is enabled on the device of the call."""
        device = self.device
        return torch.is_autocast_enabled("cpu") if device == "cpu" else autocasts(device)

    @property
    def plain(self) -> bool:
        """Whether all tensors are on one device, and of the class ``Tensor`` or ``Parameter``."""
        for t in self.tensors:
            if type(t) not in (Tensor, Parameter, NoneType):
                return False
        return self.on_cpu or len({t.device for t in self.tensors if t is not None}) == 1

    @property
    def alike(self) -> bool:
        """Whether all tensors have the same dtype."""
        given = [t for t in self.tensors if t is not None]
        return all(t.dtype == given[0].dtype for t in given)


CallT = TypeVar("CallT", bound=Call)


def _never(call: Call) -> str | None:
    return None


def _always(call: Call) -> bool:
    return True


@dataclass(frozen=True)
class Path(Generic[CallT]):
    """One implementation of an operator.

    Attributes:
        name: the value of ``backend`` that names the path.
        run: computes a call; takes its tensors in order, and its options as keyword arguments.
        because: the measurement, or another reason, for the preference.
        refuses: returns the reason why the path cannot compute a call, or None if it can.
        prefers: returns whether "auto" takes the path for a call that the path does not refuse.
    """

    name: str
    run: Callable[..., Any]
    because: str = ""
    refuses: Callable[[CallT], str | None] = _never
    prefers: Callable[[CallT], bool] = _always


@dataclass(frozen=True)
class Choice:
    """The path that a call of an operator takes, and the reasons.

    Attributes:
        operator: the operator's name.
        path: the path's name.
        because: why this path is taken.
        others: the names of the other paths, and why each of them is not taken.
        call: device, dtype and shape of the call, as text.
    """

    operator: str
    path: str
    because: str
    others: dict[str, str] = field(default_factory=dict)
    call: str = ""

    def __str__(self) -> str:
        lines = [f"{self.operator} ({self.call}) takes {self.path!r}: {self.because}"]
        return "\n".join([*lines, *(f"  not {name!r}: {why}" for name, why in self.others.items())])


class Operator(Generic[CallT]):
    """A reference path and faster paths of one operator.

    Args:
        name: the name of the function that calls the operator.
        reference: the path that computes every call, by the formula.
        *paths: the faster paths, in the order in which "auto" tests them; the reference is last.
    """

    def __init__(self, name: str, reference: Path[CallT], *paths: Path[CallT]) -> None:
        self.name = name
        self.reference = reference
        self.paths = (*paths, reference)
        self._by_name = {path.name: path for path in self.paths}
        OPERATORS[name] = self

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of the paths."""
        return tuple(self._by_name)

    def __getitem__(self, name: str) -> Path[CallT]:
        """Return the path with this name."""
        return self._by_name[name]

    def __call__(self, call: CallT, backend: str = "auto") -> Any:
        """Compute a call on the path that `choose` returns.

        Raises:
            ValueError: ``backend`` is unknown, or its path refuses the call.
        """
        path = self.choose(call, backend)
        return path.run(*call.tensors, **call.options)

    def choose(self, call: CallT, backend: str = "auto") -> Path[CallT]:
        """Return the path that a call takes.

        Args:
            call: the arguments of the operator.
            backend: the path's name; "auto" takes the path that `use_backend` names, if it does not
                refuse the call, or else the preferred path.

        Raises:
            ValueError: ``backend`` is unknown, or its path refuses the call.
        """
        path, because = self._select(call, backend)
        if torch.compiler.is_compiling():
            return path
        watcher = _watcher.get()
        if watcher is not None:
            watcher(self._choice(call, path, because))
        if _LOGS:
            _log_once(str(self._choice(call, path, because)))
        return path

    def explain(self, call: CallT, backend: str = "auto") -> Choice:
        """Return which path a call takes, why, and why the other paths are not taken.

        Raises:
            ValueError: ``backend`` is unknown, or its path refuses the call.
        """
        return self._choice(call, *self._select(call, backend))

    def _select(self, call: CallT, backend: str) -> tuple[Path[CallT], str]:
        """Return the path, and who named it; "" for the preferred path."""
        if backend != "auto":
            return self._named(call, backend), "the argument backend names this path"
        override = _current_override() if call.tensors else None
        if override is not None:
            path = self._by_name.get(override)
            if path is not None and path.refuses(call) is None:
                return path, "use_backend names this path"
        for path in self.paths:
            if path.prefers(call) and path.refuses(call) is None:
                return path, ""
        return self.reference, ""

    def _named(self, call: CallT, backend: str) -> Path[CallT]:
        check_choice("backend", backend, ("auto", *self._by_name))
        path = self._by_name[backend]
        reason = path.refuses(call)
        if reason is not None:
            raise ValueError(
                f"backend {path.name!r} cannot compute this call of {self.name}: {reason}; "
                "use backend='auto'"
            )
        return path

    def _choice(self, call: CallT, taken: Path[CallT], named: str) -> Choice:
        others = {
            p.name: self._against(p, taken, named, call) for p in self.paths if p is not taken
        }
        return Choice(self.name, taken.name, named or taken.because, others, _described(call))

    def _against(self, path: Path[CallT], taken: Path[CallT], named: str, call: CallT) -> str:
        reason = path.refuses(call)
        if reason is not None:
            return f"it cannot: {reason}"
        if named:
            return f"it can, but {taken.name!r} is named"
        if not path.prefers(call):
            return f"not measured to be faster here ({path.because})"
        return f"it comes after {taken.name!r} in the order of the paths"


# All operators by name; the tests and the performance page read this dictionary.
OPERATORS: dict[str, Operator[Any]] = {}


class _Explained(BaseException):  # `except Exception` in the explained function does not catch it
    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.choice = choice


# Context variables: each thread and each asynchronous task has its own values.
_override: ContextVar[str | None] = ContextVar("convattn_backend", default=None)
_last_override: str | None = None  # of any thread
_watcher: ContextVar[Callable[[Choice], None] | None] = ContextVar("convattn_paths", default=None)
_LOGS = "paths" in os.environ.get("CONVATTN_LOG", "").split(",")
if _LOGS:  # pragma: no cover
    _log.addHandler(logging.StreamHandler())
    _log.setLevel(logging.INFO)


@lru_cache(maxsize=1024)
def _log_once(choice: str) -> None:
    _log.info("%s", choice)


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Choice:
    """Return which path a function of this package takes for these arguments, and why.

    ``print(explain(sliding_window_attention, q, k, v, num_heads=4))``

    The function runs up to its first operator: a batch norm before it updates its statistics.

    Args:
        function: an operator's function, or a layer. If a layer calls several operators, the first
            call is explained.
        *args: positional arguments of the function.
        **kwargs: keyword arguments of the function.

    Raises:
        TypeError: the function calls no operator.
        ValueError: the arguments are invalid, or name a path that refuses the call.
    """

    def stop(choice: Choice) -> None:
        raise _Explained(choice)

    token = _watcher.set(stop)
    try:
        function(*args, **kwargs)
    except _Explained as explained:
        return explained.choice
    finally:
        _watcher.reset(token)
    name = getattr(function, "__name__", type(function).__name__)
    raise TypeError(f"{name} calls no operator that has paths")


@contextmanager
def record_paths() -> Iterator[list[Choice]]:
    """List the paths that operators take inside the ``with`` block.

    ``with record_paths() as taken: model(x)``

    Calls inside code that ``torch.compile`` has compiled are not listed: the paths were chosen when
    the code was traced.
    """
    taken: list[Choice] = []
    outer = _watcher.get()

    def record(choice: Choice) -> None:
        taken.append(choice)
        if outer is not None:
            outer(choice)

    token = _watcher.set(record)
    try:
        yield taken
    finally:
        _watcher.reset(token)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Take the path ``name`` in each call with ``backend="auto"`` that the path can compute.

    ``with use_backend("reference"): ...`` computes a whole model by the formulas. An operator
    without a path of this name, or whose path refuses the call, takes its preferred path; `explain`
    and `record_paths` show it.

    The context applies to the thread, or the asynchronous task, that enters it. A forward pass that
    ``torch.utils.checkpoint`` computes again may run on another thread: pass
    ``context_fn=checkpoint_contexts``, as the backbones of this package do. What is folded, once,
    by ``reparameterize`` does not depend on it.

    Raises:
        ValueError: no operator has a path with this name.
    """
    known = sorted({path for operator in OPERATORS.values() for path in operator.backends})
    check_choice("backend", name, ("auto", *known))
    global _last_override
    before, _last_override = _last_override, None if name == "auto" else name
    token = _override.set(_last_override)
    try:
        yield
    finally:
        _override.reset(token)
        _last_override = before


def _current_override() -> str | None:
    if _OLD_COMPILER and torch.compiler.is_compiling():
        return _read_override(_last_override)
    return _override.get()


@torch.compiler.assume_constant_result
def _read_override(last: str | None) -> str | None:
    """Return the override while code is compiled, which is compiled again when ``last`` changes."""
    return _override.get()


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return contexts in which a recomputed forward pass takes the paths of the first pass.

    Pass this function to ``torch.utils.checkpoint.checkpoint`` as ``context_fn``. The second
    forward pass may run on another thread, or after `use_backend` has ended.
    """
    return nullcontext(), _Restored(_override.get())


class _Restored(AbstractContextManager[None]):
    """Sets the backend that `use_backend` named in the first forward pass; it is reentrant."""

    def __init__(self, override: str | None) -> None:
        self._overrides = [override]

    def __enter__(self) -> None:
        self._overrides.append(_override.get())
        _override.set(self._overrides[0])

    def __exit__(self, *_: object) -> None:
        _override.set(self._overrides.pop())


def exporting() -> bool:
    """Return whether a call is traced for another runtime, which has PyTorch's operators only.

    ``torch.onnx.export`` traces by ``torch.jit`` or by ``torch.export``.
    """
    return torch.jit.is_tracing() or is_torch_export()  # type: ignore[attr-defined]


def is_torch_export() -> bool:
    """Return whether ``torch.export`` traces the operators."""
    if _OLD_COMPILER:
        return torch.compiler._is_exporting_flag
    return torch.compiler.is_exporting()


def transformed() -> bool:
    """Return whether ``torch.func`` or forward-mode differentiation transforms the operators.

    PyTorch has no public function that returns this. Kernels that have no rule for these transforms
    raise errors that name no alternative.
    """
    return (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    )


def derivable() -> AbstractContextManager[None]:
    """Let ``scaled_dot_product_attention`` use separate operators while a transform is active.

    Its fused kernels have no forward-mode derivative and no second derivative.
    """
    return sdpa_kernel(SDPBackend.MATH) if transformed() else nullcontext()


def autocasts(device: str) -> bool:
    """Return whether autocast is enabled for a device type."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def no_autocast(device: str) -> AbstractContextManager[None]:
    """Disable autocast for a device type."""
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def _described(call: Call) -> str:
    """Return device, dtype and shape of a call, as text."""
    given = [t for t in call.tensors if t is not None]
    if not given:
        return ", ".join(f"{name}={value}" for name, value in call.options.items())
    kind = str(call.dtype).removeprefix("torch.")
    grad = ", with gradients" if call.grad else ""
    return f"{call.device}, {kind}, {tuple(given[0].shape)}{grad}"
