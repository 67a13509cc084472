"""Convolution and attention in one operator: ACmix, X-volution and GLMix.

``import convattn`` imports neither torch nor timm; a name is imported when it is first used. The
package can therefore be imported where torch is not installed, and the command line prints its help
without the seconds that torch and timm need.

``timm.create_model("glnet_nano")`` works after `convattn.models` was imported, which happens by

- ``import convattn.models``, before or after ``import timm``;
- the first use of a name in `__all__`, such as ``from convattn import ACmix``;
- ``import convattn``, if the process has imported torch already. Nothing is lost there: all parts
  of this package that use torch, except `convattn.ops`, need timm.

If ``import convattn`` is the first of these imports and no name of the package is used, the models
are not registered: timm has no entry points for models, and Python tells nobody that timm was
imported. A hook in Python's import system could do so, but it would change the import of another
package, and it would fail while a module of this package imports timm: the models that the hook
imports need that unfinished module.
"""

from __future__ import annotations

import importlib
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
_HOMES = {"reparameterize": "deploy", "replace": "surgery"}
_HOMES |= dict.fromkeys(("create_model", "list_models", "load_official"), "models")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})


if not TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return importlib.import_module(f"convattn.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        importlib.import_module("convattn.models")  # registers the models with timm
        home = importlib.import_module(f"convattn.{_HOMES.get(name, 'layers')}")
        value = globals()[name] = getattr(home, name)
        return value


if sys.modules.get("torch") is not None:
    importlib.import_module("convattn.models")
