"""Convolution and attention in one operator: ACmix, X-volution and GLMix.

Each name is imported when it is first used. The package can therefore be imported without torch,
and the command line prints its help without the import of torch, which takes seconds.

If torch and timm are installed, ``import convattn`` registers the models with timm, which has no
entry points for models. The command line registers them when a command needs them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

from convattn.version import __version__

if TYPE_CHECKING:
    from convattn.deploy import reparameterize
    from convattn.layers import (
        ACmix,
        ACmixConv2d,
        GLMix,
        GLMixBlock,
        GLMixConv2d,
        XVolution,
        XVolutionConv2d,
    )
    from convattn.models import create_model, list_models, load_official
    from convattn.predictor import Predictor as Predictor
    from convattn.surgery import replace

__all__ = [
    "ACmix",
    "ACmixConv2d",
    "GLMix",
    "GLMixBlock",
    "GLMixConv2d",
    "XVolution",
    "XVolutionConv2d",
    "__version__",
    "create_model",
    "list_models",
    "load_official",
    "reparameterize",
    "replace",
]

_PACKAGES = ("deploy", "layers", "models", "ops", "surgery")  # attributes after `import convattn`
_COMMANDS = ("convattn", "convattn.exe")
_HOMES = {"Predictor": "predictor", "reparameterize": "deploy", "replace": "surgery"}
_EXTRA = ("Predictor",)  # not in `__all__`: they need the extra "train"
_HOMES |= dict.fromkeys(("create_model", "list_models", "load_official"), "models")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_EXTRA, *_PACKAGES})


if not TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return importlib.import_module(f"convattn.{name}")
        if name not in (*__all__, *_EXTRA):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        importlib.import_module("convattn.models")  # registers the models with timm
        try:
            home = importlib.import_module(f"convattn.{_HOMES.get(name, 'layers')}")
        except ModuleNotFoundError as error:
            if name in _EXTRA:
                error.msg = f"convattn.{name} needs {error.name}: pip install 'convattn[train]'"
            raise
        value = globals()[name] = getattr(home, name)
        return value


def _is_command_line() -> bool:
    """Return whether this process is ``convattn`` or ``python -m convattn``."""
    argv = getattr(sys, "argv", None) or [""]  # an embedded Python may have none
    words = sys.orig_argv
    named = "-m" in words and words[words.index("-m") + 1 :][:1] == ["convattn"]
    return named or os.path.basename(argv[0]) in _COMMANDS


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # ``sys.modules[name] = None`` blocks an import
        return False


if _is_installed("torch") and _is_installed("timm") and not _is_command_line():
    importlib.import_module("convattn.models")
