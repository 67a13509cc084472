"""Training, evaluating and using image classifiers.

The names are imported when they are first used: settings and recipes need neither torch nor
Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convattn.runs.card import ModelCard as ModelCard
    from convattn.tasks.classification.config import TrainConfig as TrainConfig
    from convattn.tasks.classification.evaluation import Evaluation as Evaluation
    from convattn.tasks.classification.predict import predict as predict
    from convattn.tasks.classification.settings import list_recipes as list_recipes
    from convattn.tasks.classification.settings import load_config as load_config
    from convattn.tasks.classification.task import Classification as Classification
    from convattn.tasks.table import evaluate as evaluate
    from convattn.tasks.table import load_checkpoint as load_checkpoint
    from convattn.tasks.table import resume as resume
    from convattn.tasks.table import train as train
    from convattn.training.run import TrainResult as TrainResult
    from convattn.training.trained import Checkpoint as Checkpoint

_PLACES = {
    "Checkpoint": "convattn.training.trained",
    "Classification": "convattn.tasks.classification.task",
    "Evaluation": "convattn.tasks.classification.evaluation",
    "ModelCard": "convattn.runs.card",
    "TrainConfig": "convattn.tasks.classification.config",
    "TrainResult": "convattn.training.run",
    "evaluate": "convattn.tasks.table",
    "list_recipes": "convattn.tasks.classification.settings",
    "load_checkpoint": "convattn.tasks.table",
    "load_config": "convattn.tasks.classification.settings",
    "predict": "convattn.tasks.classification.predict",
    "resume": "convattn.tasks.table",
    "train": "convattn.tasks.table",
}

__all__ = list(_PLACES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # with __getattr__ a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
        return value
