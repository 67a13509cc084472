"""Training, evaluating and using image classifiers."""

from convattn.runs.card import ModelCard as ModelCard
from convattn.tasks.classification.config import TrainConfig as TrainConfig
from convattn.tasks.classification.evaluation import ClassificationEvaluation as Evaluation
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

__all__ = [
    "Checkpoint",
    "Classification",
    "Evaluation",
    "ModelCard",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "list_recipes",
    "load_checkpoint",
    "load_config",
    "predict",
    "resume",
    "train",
]
