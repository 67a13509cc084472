"""Which path of an operator runs, and why: nothing else in this package chooses one.

An operator has a reference, which computes the formula, and faster paths. A path *refuses* a call
that it cannot compute, with a sentence, and *prefers* a call for which it was measured to be the
fastest. ``backend="auto"`` takes the first path, in the operator's order, that prefers the call and
does not refuse it; a path that is named runs, or raises its sentence.

`explain` says what would run, `record_paths` what did, and ``CONVATTN_LOG=paths`` writes it.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel

from convattn.checks import check_choice

_log = logging.getLogger("convattn.paths")

# Before 2.14 `is_exporting()` is also True in all that `torch.compile` traces, and what it traces
# cannot read a context variable.
_OLD_COMPILER = torch.__version__ < "2.14"


class Call:
    """What an operator is called with, each tensor and each size under its own name.

    Derive a dataclass: its fields of type ``Tensor`` or ``Tensor | None`` are the tensors, of which
    the first says the device and the type, and the other fields are the options. A choice that is
    made once, while weights are folded, is a call without tensors.

    Sizes may be symbols while a model is compiled: a preference that compares them costs one graph
    for each side, so it compares them with few constants, and never with one another.
    """

    _tensors: ClassVar[tuple[str, ...]] = ()
    _options: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Sort the fields of the dataclass into tensors and options."""
        kinds = inspect.get_annotations(cls)
        if kinds:  # a subclass without fields of its own has those of its base
            tensors = ("Tensor", "Tensor | None")
            cls._tensors = tuple(name for name, kind in kinds.items() if kind in tensors)
            cls._options = tuple(name for name in kinds if name not in cls._tensors)

    @property
    def tensors(self) -> tuple[Any, ...]:
        """The tensors, in the order of the fields; None for those that were not given."""
        return tuple([getattr(self, name) for name in self._tensors])

    @property
    def options(self) -> dict[str, Any]:
        """The other fields by their names."""
        return {name: getattr(self, name) for name in self._options}

    @property
    def device(self) -> str:
        """The kind of the device of the first tensor: "cpu", "cuda", "meta"."""
        x: Tensor = getattr(self, self._tensors[0])
        return "cpu" if x.is_cpu else x.device.type  # is_cpu takes a fifth of the time

    @property
    def on_cpu(self) -> bool:
        """Whether all tensors are on the CPU."""
        for t in self.tensors:  # noqa: SIM110  # a loop takes half the time of `all`
            if t is not None and not t.is_cpu:
                return False
        return True

    @property
    def devices(self) -> str:
        """The devices of the tensors, for a message."""
        return " and ".join(sorted({str(t.device) for t in self.tensors if t is not None}))

    @property
    def dtype(self) -> torch.dtype:
        """The type that the result has."""
        x: Tensor = getattr(self, self._tensors[0])
        return x.dtype

    @property
    def grad(self) -> bool:
        """Whether a gradient is required of a tensor."""
        return torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in self.tensors
        )

    @property
    def exporting(self) -> bool:
        """Whether the operators are written down for another runtime; see `exporting`."""
        return exporting()

    @property
    def exported(self) -> bool:
        """Whether ``torch.export`` or ``torch.onnx.export`` traces the call, not ``torch.jit``."""
        return torch.onnx.is_in_onnx_export() or is_torch_export()

    @property
    def compiling(self) -> bool:
        """Whether ``torch.compile`` or an export traces the call: sizes may be symbols."""
        return torch.compiler.is_compiling() or exporting()

    @property
    def transformed(self) -> bool:
        """Whether ``torch.func`` or forward-mode differentiation transforms the call."""
        return transformed()

    @property
    def autocast(self) -> bool:
        """Whether autocast chooses the types of PyTorch's operators on this device."""
        device = self.device
        return torch.is_autocast_enabled("cpu") if device == "cpu" else autocasts(device)

    @property
    def plain(self) -> bool:
        """Whether all tensors are PyTorch's own and on one device: no subclass computes them."""
        for t in self.tensors:
            if type(t) not in (Tensor, Parameter, NoneType):
                return False
        return self.on_cpu or len({t.device for t in self.tensors if t is not None}) == 1

    @property
    def alike(self) -> bool:
        """Whether all tensors have one type."""
        given = [t for t in self.tensors if t is not None]
        return all(t.dtype == given[0].dtype for t in given)


CallT = TypeVar("CallT", bound=Call)


def _never(call: Call) -> str | None:
    return None


def _always(call: Call) -> bool:
    return True


@dataclass(frozen=True)
class Path(Generic[CallT]):
    """One way to compute an operator.

    Attributes:
        name: what ``backend`` calls it.
        run: computes it, from the tensors of the call and, by name, its options.
        because: the measurement behind the preference, or the reason.
        refuses: returns why it cannot compute a call, or None where it can.
        prefers: returns whether "auto" takes it for a call that it does not refuse.
    """

    name: str
    run: Callable[..., Any]
    because: str = ""
    refuses: Callable[[CallT], str | None] = _never
    prefers: Callable[[CallT], bool] = _always


@dataclass(frozen=True)
class Choice:
    """Which path of an operator a call takes.

    Attributes:
        operator: the operator's name.
        path: the path's name.
        because: why the path is taken.
        others: why each other path is not.
        call: device, type and shapes.
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
    """A reference and the paths that are faster.

    Args:
        name: of the function that calls it.
        reference: computes every call, by the formula.
        *paths: in the order in which "auto" asks them; the reference is asked last.
        named: whether the function has an argument ``backend``. A path of an operator without one
            is named by `use_backend` alone, and taken where it does not refuse.
    """

    def __init__(
        self,
        name: str,
        reference: Path[CallT],
        *paths: Path[CallT],
        named: bool = True,
    ) -> None:
        self.name = name
        self.paths = (*paths, reference)
        self.reference = reference
        self.named = named
        self._by_name = {path.name: path for path in self.paths}
        OPERATORS[name] = self

    @property
    def backends(self) -> tuple[str, ...]:
        """The names of the paths."""
        return tuple(self._by_name)

    def __call__(self, call: CallT, backend: str = "auto") -> Any:
        """Compute a call on the path that `choose` returns.

        Raises:
            ValueError: the path that is named is unknown, or refuses the call.
        """
        path = self.choose(call, backend)
        return path.run(*call.tensors, **call.options)

    def choose(self, call: CallT, backend: str = "auto") -> Path[CallT]:
        """Return the path that a call takes.

        Args:
            call: what the operator is called with.
            backend: the path's name; "auto" for that of `use_backend`, or else for the preferred.

        Raises:
            ValueError: the path that is named is unknown, or refuses the call.
        """
        path = self._named_path(call, backend) or self._preferred(call)
        if torch.compiler.is_compiling():
            return path
        watcher = _watcher.get()
        if watcher is not None or _LOGS:
            self._tell(watcher, call, path, backend)
        return path

    def explain(self, call: CallT, backend: str = "auto") -> Choice:
        """Return which path a call takes, why, and why the others are not taken.

        Raises:
            ValueError: the path that is named is unknown, or refuses the call.
        """
        path = self._named_path(call, backend) or self._preferred(call)
        because = path.because if backend == "auto" else "it is the one that was named"
        others = {p.name: self._against(p, path, call) for p in self.paths if p is not path}
        return Choice(self.name, path.name, because, others, _described(call))

    def _named_path(self, call: CallT, backend: str) -> Path[CallT] | None:
        if backend == "auto":
            override = _current_override()
            path = None if override is None else self._by_name.get(override)
            if path is None or (not self.named and path.refuses(call)):
                return None
        else:
            path = self._by_name.get(backend)
            if path is None:
                check_choice("backend", backend, ("auto", *self._by_name))
                raise AssertionError("an unknown backend is an error")
        sentence = path.refuses(call)
        if sentence is not None:
            raise ValueError(
                f"backend {path.name!r} cannot compute this call of {self.name}: {sentence}; "
                "use backend='auto'"
            )
        return path

    def _preferred(self, call: CallT) -> Path[CallT]:
        for path in self.paths:
            if path.prefers(call) and path.refuses(call) is None:
                return path
        return self.reference

    def _against(self, path: Path[CallT], taken: Path[CallT], call: CallT) -> str:
        sentence = path.refuses(call)
        if sentence is not None:
            return f"it cannot: {sentence}"
        if not path.prefers(call):
            return f"not measured to be faster here ({path.because})"
        return f"asked after {taken.name!r}"

    def _tell(self, watcher: Watcher | None, call: CallT, path: Path[CallT], backend: str) -> None:
        choice = self.explain(call, backend)
        if watcher is not None:
            watcher.see(choice)
        if _LOGS and str(choice) not in _logged:
            _logged.add(str(choice))
            _log.info("%s", choice)


# Every operator by its name: what the tests and the performance page read.
OPERATORS: dict[str, Operator[Any]] = {}


class Watcher:
    """Is told of every choice."""

    def see(self, choice: Choice) -> None:
        """Take note of a choice."""
        raise NotImplementedError


class _Recorder(Watcher):
    def __init__(self) -> None:
        self.taken: list[Choice] = []

    def see(self, choice: Choice) -> None:
        self.taken.append(choice)


class _Explained(Exception):  # noqa: N818  # no error: it ends a call that is only explained
    def __init__(self, choice: Choice) -> None:
        super().__init__(choice)
        self.choice = choice


class _Stopper(Watcher):
    def see(self, choice: Choice) -> None:
        raise _Explained(choice)


# Context variables: threads that serve two models do not see each other's.
_override: ContextVar[str | None] = ContextVar("convattn_backend", default=None)
_last_override: str | None = None  # of any thread
_watcher: ContextVar[Watcher | None] = ContextVar("convattn_watcher", default=None)
_LOGS = "paths" in os.environ.get("CONVATTN_LOG", "").split(",")
_logged: set[str] = set()
if _LOGS:  # pragma: no cover
    _log.addHandler(logging.StreamHandler())
    _log.setLevel(logging.INFO)


def explain(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Choice:
    """Return which path a function of this package takes for these arguments, and why.

    ``print(explain(sliding_window_attention, q, k, v, num_heads=4))``

    Args:
        function: an operator's function, or a layer: of several operators the first is explained.
        *args: its arguments.
        **kwargs: its arguments.

    Raises:
        TypeError: the function calls no operator.
        ValueError: the arguments are wrong, or name a path that refuses them.
    """
    token = _watcher.set(_Stopper())
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
    """Collect which path every operator takes.

    ``with record_paths() as taken: model(x)``

    Calls in code that ``torch.compile`` has compiled are not seen: they were chosen when it was
    traced.
    """
    recorder = _Recorder()
    token = _watcher.set(recorder)
    try:
        yield recorder.taken
    finally:
        _watcher.reset(token)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Send every operator whose backend is "auto" down the path ``name``, where it has one.

    ``with use_backend("reference"): ...`` runs the plain formulas in a whole model. It is heeded by
    the thread, or the asynchronous task, that it is entered in.

    Raises:
        ValueError: no operator has a path of that name.
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
    """Let a forward pass that is computed again take the paths of the first one.

    The ``context_fn`` of ``torch.utils.checkpoint.checkpoint``: the second forward pass may run on
    another thread, or after `use_backend` has ended.
    """
    return nullcontext(), _Restored(_override.get())


class _Restored(AbstractContextManager[None]):
    """Sets the override that a forward pass had; it may be entered again and again."""

    def __init__(self, override: str | None) -> None:
        self._overrides = [override]

    def __enter__(self) -> None:
        self._overrides.append(_override.get())
        _override.set(self._overrides[0])

    def __exit__(self, *_: object) -> None:
        _override.set(self._overrides.pop())


def exporting() -> bool:
    """Return whether the operators are written down for another runtime, which knows PyTorch's own.

    ``torch.onnx.export`` does the one or the other.
    """
    return torch.jit.is_tracing() or is_torch_export()  # type: ignore[attr-defined]


def is_torch_export() -> bool:
    """Return whether ``torch.export`` traces the operators."""
    if _OLD_COMPILER:
        return torch.compiler._is_exporting_flag
    return torch.compiler.is_exporting()


def transformed() -> bool:
    """Return whether ``torch.func`` or forward-mode differentiation transforms the operators.

    PyTorch has no public question for either, and kernels without a rule for them raise errors that
    name no way out.
    """
    return (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    )


def derivable() -> AbstractContextManager[None]:
    """Let sdpa multiply plainly where a transform differentiates it: its kernels lack derivatives.

    They have no forward mode, and no derivative of their gradient.
    """
    return sdpa_kernel(SDPBackend.MATH) if transformed() else nullcontext()


def autocasts(device: str) -> bool:
    """Return whether autocast chooses the types on such a device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def no_autocast(device: str) -> AbstractContextManager[None]:
    """Keep the types as they are, where autocast would choose others."""
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def _described(call: Call) -> str:
    """Return device, type and shapes of a call, in a few words."""
    given = [t for t in call.tensors if t is not None]
    if not given:
        return ", ".join(f"{name}={value}" for name, value in call.options.items())
    kind = str(call.dtype).removeprefix("torch.")
    grad = ", with gradients" if call.grad else ""
    return f"{call.device}, {kind}, {tuple(given[0].shape)}{grad}"
