"""Training, evaluating and using image classifiers.

The names are imported when they are first used: settings and recipes need neither torch nor
Lightning.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convattn.runs.card import ModelCard as ModelCard
    from convattn.tasks.classification.checkpoint import Checkpoint as Checkpoint
    from convattn.tasks.classification.checkpoint import load_checkpoint as load_checkpoint
    from convattn.tasks.classification.config import TrainConfig as TrainConfig
    from convattn.tasks.classification.evaluate import Evaluation as Evaluation
    from convattn.tasks.classification.evaluate import evaluate as evaluate
    from convattn.tasks.classification.predict import predict as predict
    from convattn.tasks.classification.settings import list_recipes as list_recipes
    from convattn.tasks.classification.settings import load_config as load_config
    from convattn.tasks.classification.train import TrainResult as TrainResult
    from convattn.tasks.classification.train import resume as resume
    from convattn.tasks.classification.train import train as train

_MODULES = {
    "Checkpoint": "convattn.tasks.classification.checkpoint",
    "Evaluation": "convattn.tasks.classification.evaluate",
    "ModelCard": "convattn.runs.card",
    "TrainConfig": "convattn.tasks.classification.config",
    "TrainResult": "convattn.tasks.classification.train",
    "evaluate": "convattn.tasks.classification.evaluate",
    "list_recipes": "convattn.tasks.classification.settings",
    "load_checkpoint": "convattn.tasks.classification.checkpoint",
    "load_config": "convattn.tasks.classification.settings",
    "predict": "convattn.tasks.classification.predict",
    "resume": "convattn.tasks.classification.train",
    "train": "convattn.tasks.classification.train",
}

__all__ = list(_MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker would take any name for an attribute

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(_MODULES[name])
        value = globals()[name] = getattr(module, name)
        return value


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        """Keep ``evaluate`` a function when Python imports the module of the same name."""
        if name not in _MODULES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
