"""Training, evaluating and using image classifiers."""

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
